"""oslo.messaging's own functional tests, run in processes of their own over a URL."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from typing import NamedTuple

from tests.support import ROOT

LEFT_OUT_MODULES = {
    "test_rabbitmq": "starts a cluster of RabbitMQ itself, with pifpaf, and looks into connections of the stock driver",
}
"""Modules of tests that are not run -> why."""
LEFT_OUT = {
    "test_functional.MetricsTestCase.test_functional": "starts the service of oslo.metrics on a fixed port; what it "
    "counts are calls in oslo.messaging's client, above the driver",
}
"""Tests that are not run -> why. They do not depend on the driver."""
_TURNS = "expects that servers take turns, each one in its time; over ZeroMQ a client gives to whichever is idle"
LEFT_OUT_ON = {
    "ZeroMQ": {
        "test_functional.CallTestCase.test_server_in_group": _TURNS,
        "test_functional.CastTestCase.test_server_in_group": _TURNS,
        "test_functional.NotifyTestCase.test_multiple_servers": _TURNS,
    }
}
"""Message system -> those that are not run there -> why."""

THREADS, EVENTLET = "threads", "eventlet"
NEEDS = ("eventlet", "fixtures", "oslotest", "requests", "testscenarios", "testtools")
"""What these tests import."""
_PROCESSES = 10
"""So many run at the same time: the tests wait most of the time, and each has topics of its own."""
_SECONDS = 240.0
"""The longest that a process may take."""
_TEST_SECONDS = "90"
"""The longest that a test may take."""


_AGAIN = 3
"""So many that fail are run once more, one at a time. Some of these tests wait for half a second only, in which a busy
machine may not get round to them; if more fail it is no chance."""


class Outcome(NamedTuple):
    """What came of a test: "passed", "skipped", "failed" or "not run"; why; and whether it was run twice."""

    test: str
    outcome: str
    why: str
    again: bool = False


def missing() -> str:
    """Why they cannot be run here; "" if they can."""
    found = find_spec("oslo_messaging")
    assert found is not None
    assert found.submodule_search_locations is not None
    folder = pathlib.Path(next(iter(found.submodule_search_locations))) / "tests" / "functional"
    if not folder.is_dir():
        return "this oslo.messaging came without its tests: the wheel on PyPI has them"
    lacking = [name for name in NEEDS if find_spec(name) is None]
    return f"oslo.messaging's tests need {', '.join(lacking)}: pip install them" if lacking else ""


def run(url: str, system: str, kind: str) -> list[Outcome]:
    """Run all of them but those that are left out.

    Args:
        url: of the transport.
        system: the message system's name.
        kind: `THREADS` or `EVENTLET`.
    """
    left_out = LEFT_OUT | LEFT_OUT_ON.get(system, {})
    names = _names(kind)
    assert left_out.keys() <= set(names), "a test that is left out is no more"
    tests = [name for name in names if name not in left_out]
    # The slow ones stand side by side: so each process gets some of them.
    shares = [tests[first::_PROCESSES] for first in range(_PROCESSES)]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        running = [_start(share, url, kind, path / str(at)) for at, share in enumerate(shares)]
        found = [outcome for it, share in zip(running, shares, strict=True) for outcome in _finish(it, share)]
        failed = [it.test for it in found if it.outcome == "failed"]
        if not 0 < len(failed) <= _AGAIN:
            return found
        again = _finish(_start(failed, url, kind, path / "again"), failed)
    return [it for it in found if it.test not in failed] + [it._replace(again=True) for it in again]


class _Running(NamedTuple):
    process: subprocess.Popen[bytes]
    output: pathlib.Path
    log: pathlib.Path


def _command(kind: str, *tests: str) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", "tests.openstack.upstream_run", kind, *tests]


def _names(kind: str) -> list[str]:
    listed = subprocess.run(_command(kind), cwd=ROOT, capture_output=True, text=True, timeout=_SECONDS, check=False)
    assert listed.returncode == 0, listed.stderr
    return sorted(listed.stdout.split())


def _start(share: list[str], url: str, kind: str, path: pathlib.Path) -> _Running:
    output, log = path.with_suffix(".output"), path.with_suffix(".log")
    environment = os.environ | {
        "RPC_TRANSPORT_URL": url,
        "NOTIFY_TRANSPORT_URL": url,
        "OS_TEST_TIMEOUT": _TEST_SECONDS,
        "PYTHONPATH": str(ROOT),
    }
    with output.open("wb") as stdout, log.open("wb") as stderr:
        process = subprocess.Popen(
            _command(kind, *share),
            cwd=path.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
        )
    return _Running(process, output, log)


def _finish(running: _Running, share: list[str]) -> list[Outcome]:
    """What came of the tests of a process, once it has ended."""
    try:
        running.process.wait(_SECONDS)
        ended = f"the process ended with {running.process.returncode}"
    except subprocess.TimeoutExpired:
        ended = f"the process took longer than {_SECONDS:g} s"
    finally:
        running.process.kill()
        running.process.wait()
    found = [Outcome(*json.loads(line)) for line in running.output.read_text().splitlines() if line.startswith("[")]
    lacking = [name for name in share if name not in {it.test for it in found}]
    log = "\n".join(running.log.read_text(errors="replace").splitlines()[-30:])
    return found + [Outcome(name, "not run", f"{ended}\n{log}") for name in lacking]
