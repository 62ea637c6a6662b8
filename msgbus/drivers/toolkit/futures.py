"""Futures that more than one side may finish: an answer of the message system, a deadline, a close and a fork."""

from __future__ import annotations

import threading
from concurrent.futures import Future, InvalidStateError
from typing import Any

from msgbus.exceptions import CallCancelled


def finish(future: Future[Any], value: Any = None) -> None:
    """Set a future's result, unless it is done already. Any thread."""
    try:
        future.set_result(value)
    except InvalidStateError:
        pass


def fail(future: Future[Any], error: BaseException) -> None:
    """Set a future's exception, unless it is done already. Any thread."""
    try:
        future.set_exception(error)
    except InvalidStateError:
        pass


def failed(error: BaseException) -> Future[Any]:
    """A future that has failed."""
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def done(value: Any = None) -> Future[Any]:
    """A future that has a result."""
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def fail_inherited(future: Future[Any]) -> None:
    """Fail a future that a forked child inherited. A thread that exists only in the parent may hold its lock."""
    future._condition = threading.Condition()
    fail(future, CallCancelled("the process forked: what was under way was left to the parent"))
