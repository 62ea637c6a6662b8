"""The conformance suite notices what is broken: the checks of the broken guarantee fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.functional.brokers.rabbitmq import RabbitMQ
from tests.mutants.others import OTHERS
from tests.mutants.processes import PROCESSES
from tests.mutants.promises import PROMISES
from tests.mutants.ten import TEN

MUTANTS = TEN | OTHERS | PROMISES
SECONDS = 900.0
"""For one mutant: many wait for a processor at the same time."""

Results = dict[str, dict[str, Any]]


def run(name: str, *url: str) -> Results:
    """The result of each check on a mutant."""
    command = [sys.executable, "-m", "tests.mutants.run", name, *url]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert ended.returncode == 0, ended.stderr
    return {result["check"]: result for result in map(json.loads, ended.stdout.splitlines())}


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Results]]]:
    """The suite, as it runs on all mutants, several at a time: most of them wait most of the time."""
    selected = [
        item for item in request.session.items if isinstance(item, pytest.Function) and item.path == request.path
    ]
    names = [str(item.callspec.params["name"]) for item in selected if "running" in item.fixturenames]
    with ThreadPoolExecutor(2 * (os.cpu_count() or 1) + 1) as pool:
        try:
            yield {name: pool.submit(run, name) for name in names}
        finally:
            pool.shutdown(cancel_futures=True)


# The ten are tried each time; to try all takes minutes.
@pytest.mark.timeout(SECONDS * 2)
@pytest.mark.parametrize("name", [*TEN, *(pytest.param(name, marks=pytest.mark.soak) for name in OTHERS | PROMISES)])
def test_mutant_is_caught(name: str, running: dict[str, Future[Results]]) -> None:
    """By the checks that name its fault, and by no others; those that are skipped build on one of them."""
    _judge(name, running[name].result())


@pytest.mark.soak
@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("name", PROCESSES)
def test_mutant_of_several_processes_is_caught(name: str, rabbitmq_43: RabbitMQ) -> None:
    """As those of the fake message system, on a real one: a fault that shows once a process was killed."""
    _judge(name, run(name, rabbitmq_43.url))


def _judge(name: str, results: Results) -> None:
    failed = {check: result["reason"] for check, result in results.items() if result["outcome"] == "failed"}
    assert failed.keys() == (MUTANTS | PROCESSES)[name].caught_by, failed


def test_every_mutant_says_what_is_wrong() -> None:
    """Its docstring is the fault, and the checks that it is to be caught by exist."""
    from msgbus.conformance.suite import Conformance

    for name, mutant in (MUTANTS | PROCESSES).items():
        assert mutant.apply.__doc__, name
        assert mutant.caught_by, name
        for check in mutant.caught_by:
            assert hasattr(Conformance, check), check
