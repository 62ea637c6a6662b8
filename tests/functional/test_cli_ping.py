"""`msgbus ping` and `msgbus gather` where servers are frozen or busy, with real processes."""

from __future__ import annotations

import contextlib
import json
import pathlib
import signal
from collections.abc import Iterator

import pytest

from tests.functional.brokers.processes import send_signal
from tests.functional.test_cli import Bench, Server


@pytest.fixture(params=["zmq", "rabbitmq_310", "rabbitmq_43", "qpid"])
def bench(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[Bench]:
    """A topic on each message system in turn. Its servers have one thread each."""
    (tmp_path / "one-thread.conf").write_text("[DEFAULT]\nexecutor_thread_pool_size = 1\n")
    with contextlib.ExitStack() as cleanup:
        url = "zmq://" if request.param == "zmq" else request.getfixturevalue(request.param).url
        made = Bench(tmp_path, f"{url}?durable=false" if request.param == "qpid" else url, cleanup)
        made.env["XDG_RUNTIME_DIR"] = str(tmp_path)
        yield made


def serve(bench: Bench, name: str) -> Server:
    """Start a server with one thread."""
    return bench.serve("--server", name, "--config-file", "one-thread.conf")


def test_frozen_and_busy_servers_are_counted(bench: Bench) -> None:
    """They do not answer, and do not vanish: it says of how many, and --strict ends with 3."""
    one, two, three = (serve(bench, name) for name in ("one", "two", "three"))
    result = bench.run("ping", "--strict", "--timeout", "20")
    assert (result.returncode, result.stderr) == (0, "3 of 3 answered\n")
    path, go_on = bench.gate()
    bench.start("call", bench.topic, "wait_for", f"path={path}", "--server", "two")
    two.wait_for("waiting")
    send_signal(three.process.pid, signal.SIGSTOP)
    result = bench.run("ping", "--timeout", "2")
    assert (result.returncode, result.stderr) == (0, "1 of 3 answered\n")
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["server", "one"]
    result = bench.run("ping", "--strict", "--timeout", "2", "--json")
    found = json.loads(result.stdout)
    assert (found["server"], found["answered"], found["expected"]) == ("one", 1, 3)
    error = json.loads(result.stderr)
    assert (result.returncode, error["error"]) == (3, "MessageUndeliverable")
    assert error["message"].startswith("1 of 3 answered within 2 s over ")
    go_on()
    three.process.send_signal(signal.SIGCONT)
    result = bench.run("ping", "--strict", "--timeout", "20")
    assert (result.returncode, result.stderr) == (0, "3 of 3 answered\n")
    del one


def test_only_server_that_is_frozen_is_counted(bench: Bench) -> None:
    """None answers, of one: exit code 3, with or without its name."""
    one = serve(bench, "one")
    send_signal(one.process.pid, signal.SIGSTOP)
    for words in ([], ["--server", "one"]):
        result = bench.run("ping", "--timeout", "2", *words)
        assert (result.returncode, result.stdout) == (3, "")
        assert "within 2 s (0 of 1 answered) over " in result.stderr
        assert ": it is frozen, has just stopped, or cannot answer: too busy" in result.stderr


def test_gather_has_the_answers_of_those_that_are_well(bench: Bench) -> None:
    """One that is frozen, or dies, is counted as missing, and holds up no other answer."""
    one, two, three = (serve(bench, name) for name in ("one", "two", "three"))
    ask = ["gather", "greet", "name=Ada"]
    result = bench.run(*ask, "--strict", "--timeout", "20")
    assert (result.returncode, result.stderr) == (0, "3 of 3 answered\n")
    assert sorted(result.stdout.splitlines()) == [f'{name}: "Hello, Ada"' for name in ("one", "three", "two")]
    send_signal(three.process.pid, signal.SIGSTOP)
    result = bench.run(*ask, "--strict", "--timeout", "3")
    assert (result.returncode, len(result.stdout.splitlines())) == (3, 2)
    assert "2 of 3 answered" in result.stderr
    three.process.kill()
    two.process.kill()
    two.process.wait()
    result = bench.run(*ask, "--timeout", "3")
    assert (result.returncode, result.stdout) == (0, 'one: "Hello, Ada"\n')
    del one
