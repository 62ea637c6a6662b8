"""`msgbus notify` and `msgbus listen`."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from click.testing import Result

import msgbus
from msgbus.cli.errors import Code
from tests.cli.test_cli import fails, run
from tests.notify.support import Endpoint, listening
from tests.support import new_transport

FAKE = "fake://cli-notifications/"


@pytest.fixture(autouse=True)
def transport() -> Iterator[msgbus.Transport]:
    """Keeps the message system in memory, which would end with each command."""
    made = new_transport(FAKE)
    yield made
    made.cleanup()


def notify(*args: str) -> Result:
    """Run ``msgbus notify``."""
    return run("notify", *args, "--url", FAKE)


def listened(*args: str) -> list[dict[str, object]]:
    """What ``msgbus listen --json`` prints."""
    result = run("listen", *args, "--json", "--url", FAKE)
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_what_is_sent_is_printed() -> None:
    """With its level, who has sent it, its type and its payload; ``notify`` prints nothing."""
    result = notify("notifications", "order.created", '{"id": 7}', "--publisher-id", "shop", "--level", "warn")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    (found,) = listened("notifications", "--count", "1")
    assert (found["level"], found["publisher_id"], found["event_type"]) == ("warn", "shop", "order.created")
    assert (found["payload"], found["context"]) == ({"id": 7}, {})
    assert {"message_id", "timestamp"} < found.keys()


def test_for_people_it_is_a_line() -> None:
    """And it says on stderr where it listens."""
    notify("notifications", "order.created", '{"id": 7}', "--publisher-id", "shop")
    notify("notifications", "order.paid", "null")
    result = run("listen", "notifications", "--count", "2", "--url", FAKE)
    assert result.exit_code == 0
    assert result.stdout == 'info order.created from shop: {"id":7}\ninfo order.paid from nobody: null\n'
    assert result.stderr.startswith("msgbus listen is ready: notifications of notifications, over ")


def test_only_the_levels_that_are_asked_for() -> None:
    """Others stay for other listeners."""
    for level in ("debug", "info", "error"):
        notify("notifications", level, "1", "--level", level)
    found = listened("notifications", "--level", "error", "--level", "debug", "--count", "2")
    assert {one["event_type"] for one in found} == {"debug", "error"}
    assert [one["event_type"] for one in listened("notifications", "--count", "1")] == ["info"]


def test_what_is_not_printed_any_more_others_may_have() -> None:
    """After ``--count`` notifications, those that had come already are given back."""
    for n in range(5):
        notify("notifications", f"e{n}", str(n))
    assert len(listened("notifications", "--count", "2")) == 2
    assert len(listened("notifications", "--count", "3")) == 3


def test_a_pool_gets_a_copy(transport: msgbus.Transport) -> None:
    """Other listeners get the notification all the same."""
    # The pool is there from its first listener on.
    pool = Endpoint()
    with listening(transport, pool, pool="p"):
        notify("notifications", "first", "1")
        assert pool.events(1) == ["first"]
    notify("notifications", "second", "2")
    assert [one["event_type"] for one in listened("notifications", "--pool", "p", "--count", "1")] == ["second"]


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["notify", "notifications", "e", "{"], "is no valid JSON"),
        (["notify", "notifications", "e"], "JSON"),
        (["notify", "notifications", "e", "1", "--level", "loud"], "'loud'"),
        (["notify", "", "e", "1"], "topic"),
        (["notify", "t" * 76, "e", "1"], "topic"),
        (["listen", "notifications", "--count", "0"], "--count"),
        (["listen", "notifications", "--level", "loud"], "'loud'"),
        (["listen", ""], "topic"),
    ],
)
def test_wrong_usage_is_one_line(args: list[str], text: str) -> None:
    """It names what is wrong."""
    assert text in fails(run(*args, "--url", FAKE), Code.USAGE)


def test_nobody_to_hear_it_is_an_error_where_nothing_is_stored(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whoever types the command wants to know; a program's notifier only logs it."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
    line = fails(run("notify", "notifications", "e", "1"), Code.NO_SERVER)
    assert "nobody listens at topic 'notifications.info'" in line


def test_levels_are_completed() -> None:
    """As other options with a choice."""
    from click.shell_completion import ShellComplete

    from msgbus.cli.app import cli

    complete = ShellComplete(cli, {}, "msgbus", "_MSGBUS_COMPLETE")
    found = complete.get_completions(["notify", "--level"], "cr")
    assert [item.value for item in found] == ["critical"]
