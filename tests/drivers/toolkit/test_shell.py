"""msgbus.drivers.toolkit.shell: what a driver that is closed does with what it was asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from msgbus import CallCancelled
from msgbus.drivers.toolkit.futures import finish
from msgbus.drivers.toolkit.loop import Loop
from msgbus.drivers.toolkit.shell import DriverShell


class Shell(DriverShell):
    """A driver that connects with nothing, and notes what its connections would be asked for."""

    def __init__(self, loop: Loop) -> None:
        super().__init__(loop)
        self.calls: list[str] = []
        self.unfinished: Future[Any] = Future()

    def was_closed(self) -> CallCancelled:
        return CallCancelled("it was closed")

    def _disconnect(self, error: CallCancelled, deadline: float) -> None:
        self.calls.append("disconnect")
        self._wait([self.unfinished], deadline)
        self._wait_for(deadline, self._leave)

    def _leave(self, done: Future[None]) -> None:
        self.calls.append("leave")
        finish(done)

    def _abandon(self) -> Iterable[Future[Any]]:
        return [self.unfinished]

    def ignore(self, _future: Future[Any]) -> None:
        """Never finish."""

    def send(self, *_args: Any, **_more: Any) -> Any:
        raise NotImplementedError

    subscribe = open_inbox = inspect = send


@pytest.fixture
def shell() -> Iterator[Shell]:
    """One with a loop of its own."""
    made = Shell(Loop("test"))
    yield made
    made.loop.close()


def test_close_waits_for_what_is_unfinished_and_fails_the_rest(shell: Shell) -> None:
    """What is finished in time is; what nobody finishes fails when the connections have ended."""
    asked = shell.ask(shell.ignore)
    shell.loop.call_later(0.05, finish, shell.unfinished)
    shell.close()
    assert shell.calls == ["disconnect", "leave"]
    assert shell.unfinished.done()
    assert isinstance(asked.exception(0), CallCancelled)
    assert isinstance(shell.ask(shell.ignore).exception(0), CallCancelled)


def test_close_on_the_loops_own_thread_does_not_wait(shell: Shell) -> None:
    """The thread has to go on, for what is waited for to happen; what was asked for fails at once."""
    asked, closed = shell.ask(shell.ignore), threading.Event()
    shell.close_timeout = 600.0
    shell.loop.call(shell.close)
    shell.loop.call(closed.set)
    assert closed.wait(60)
    assert isinstance(asked.exception(60), CallCancelled)


def test_close_disconnects_once_and_only_if_the_loop_was_started(shell: Shell) -> None:
    """A driver that was never used has nothing to end, and the second close does nothing."""
    shell.close()
    assert shell.calls == []
    used = Shell(shell.loop)
    used.unfinished.set_result(None)
    used.ask(used.ignore)
    used.close()
    used.close()
    assert used.calls == ["disconnect", "leave"]
