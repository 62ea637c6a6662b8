"""`msgbus bench` with brokers: what it measures, and that nothing is left behind, however it ends."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
from collections.abc import Iterator

import pytest

from msgbus.cli.errors import Code
from tests.cli.test_bench import ROW_NAMES, check_figures, children_of, rows_of, started, wait_for_end
from tests.functional.brokers.processes import poll
from tests.functional.brokers.qpid import Qpid
from tests.functional.brokers.rabbitmq import RabbitMQ

SECONDS = 90
"""How long a test waits for what takes some seconds on a machine that does nothing else."""
EXPIRES = 60_000
"""Milliseconds after which RabbitMQ removes the queue of a topic or server that nobody uses."""

Broker = RabbitMQ | Qpid


@pytest.fixture(params=[pytest.param("rabbitmq_310", marks=pytest.mark.soak), "rabbitmq_43", "qpid"])
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """Each broker in turn, running before and after."""
    found: Broker = request.getfixturevalue(request.param)
    if not found.alive():  # an earlier test failed half-way
        found.start()
    yield found
    if not found.alive():
        found.start()


def url_of(broker: Broker) -> str:
    """Its URL. Qpid's virtual host is in memory, and refuses messages that have to outlive a restart."""
    return f"{broker.url}?durable=false" if isinstance(broker, Qpid) else broker.url


def wait_until_nothing_is_left(broker: Broker, before: set[str], pids: list[int], *, clean: bool = True) -> None:
    """The servers have ended, and each queue that was made is gone, or is one that RabbitMQ removes.

    `clean`: no process was killed. If one was, RabbitMQ removes what it had for itself after a minute too.
    """
    assert len(pids) == 3
    wait_for_end(pids)

    def left() -> list[str]:
        made = {name: queue for name, queue in broker.queues().items() if name not in before}
        if isinstance(broker, Qpid):  # One link is the test's own: it asks for the queues.
            return [name for name in made if not name.startswith("TempQueue")]
        private = [name for name in made if clean and ("!" in name or name.startswith("reply_"))]
        return private + [name for name, queue in made.items() if queue["arguments"].get("x-expires") != EXPIRES]

    poll(lambda: not left(), SECONDS, "the end of the queues")


def test_bench_measures_and_leaves_nothing(broker: Broker) -> None:
    """Each row is there, with the costs of client and servers; the queues have gone, or go within a minute."""
    before = set(broker.queues())
    with started(url_of(broker), "--seconds", "0.5") as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        pids = children_of(process.pid)
        stdout, stderr = process.communicate(timeout=SECONDS)
    assert (process.returncode, stderr) == (0, "")
    rows = rows_of(first + stdout)
    assert list(rows) == ROW_NAMES
    for row in rows.values():
        check_figures(row)
        assert not row["one_process"]
    wait_until_nothing_is_left(broker, before, pids)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_bench_that_is_ended_leaves_nothing(broker: Broker, number: signal.Signals) -> None:
    """However it ends. The password is not among the words of its servers' commands, which everybody can see."""
    before = set(broker.queues())
    with started(url_of(broker), "--seconds", "1") as process:
        assert process.stdout is not None
        assert process.stdout.readline()  # The next row has 32 callers, and calls in flight all the time.
        pids = children_of(process.pid)
        for pid in pids:
            assert "guest" not in pathlib.Path(f"/proc/{pid}/cmdline").read_text()
            assert os.getpgid(pid) != os.getpgid(process.pid), "Ctrl-C would reach them before the bench stops them"
        process.send_signal(number)
        _, stderr = process.communicate(timeout=SECONDS)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert stderr.strip() == ""
    # What a killed process had open as its inbox, RabbitMQ removes after a minute.
    wait_until_nothing_is_left(broker, before, pids, clean=number == signal.SIGINT)


def test_bench_whose_server_is_killed_says_which(broker: Broker) -> None:
    """Soon, and not after the timeout of the calls that it had."""
    before = set(broker.queues())
    with started(url_of(broker), "--seconds", "2") as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        pids = children_of(process.pid)
        os.kill(pids[1], signal.SIGKILL)
        _, stderr = process.communicate(timeout=SECONDS)
    error = json.loads(stderr)
    assert (process.returncode, error["error"]) == (Code.TIMEOUT, "ServerLost")
    assert f"(process {pids[1]}) was ended by signal 9" in error["message"]
    wait_until_nothing_is_left(broker, before, pids, clean=False)


def test_bench_whose_broker_goes_away_says_so(broker: Broker) -> None:
    """Whatever became of the calls in flight: it is the message system that is away, and no process stays."""
    with started(url_of(broker), "--seconds", "2") as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        pids = children_of(process.pid)
        broker.kill()
        _, stderr = process.communicate(timeout=SECONDS)
    error = json.loads(stderr)
    assert (process.returncode, error["error"]) == (Code.AWAY, "TransportUnavailable")
    wait_for_end(pids)


def test_bench_whose_broker_freezes_says_so(broker: Broker) -> None:
    """A broker that answers nothing is as good as none."""
    with started(url_of(broker), "--seconds", "2") as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        pids = children_of(process.pid)
        broker.pause()
        try:
            _, stderr = process.communicate(timeout=SECONDS)
        finally:
            broker.resume()
    error = json.loads(stderr)
    assert (process.returncode, error["exit_code"]) == (Code.AWAY, Code.AWAY)
    wait_for_end(pids)


def test_bench_with_a_message_system_that_is_away_is_exit_code_5() -> None:
    """As for every command; no server is started."""
    with started("rabbit://guest:guest@127.0.0.1:9/") as process:
        try:
            stdout, stderr = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            pytest.fail("it waits for ever")
    error = json.loads(stderr)
    assert (process.returncode, error["exit_code"], error["error"]) == (5, 5, "TransportUnavailable")
    assert stdout == ""
