"""Futures that more than one side may finish: an answer of the message system, a deadline, a close and a fork."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from concurrent.futures._base import CANCELLED, FINISHED, PENDING, RUNNING
from typing import Any, TypeVar

from msgbus.exceptions import CallCancelled
from msgbus.foreign import get_logger

LOG = get_logger(__name__)

T = TypeVar("T")

UNDONE = (PENDING, RUNNING)


class LightFuture(Future[T]):
    """A future that costs little while nobody waits for it in `result`, which is so for nearly every message.

    It can be used like any other. What differs is how it works: one single step of the interpreter says who finishes
    it, and the condition on which threads wait is made when the first one does.
    """

    _made: threading.Condition | None = None  # of the class; a future for which somebody waits has its own

    def __init__(self) -> None:
        # Instead of that of the base class, which makes a condition.
        self._state = PENDING
        self._result: T | None = None
        self._exception: BaseException | None = None
        self._waiters: list[Any] = []  # of `concurrent.futures.wait`; used while the condition is held
        self._done_callbacks: list[Callable[[Future[T]], object]] = []
        self._unfinished = [True]  # taken out by whoever finishes it

    @property
    def _condition(self) -> threading.Condition:
        """What the base class and `concurrent.futures.wait` hold while they look at the state, and wait on."""
        made = self._made
        # In one step, without a lock: a forked child would inherit that as it is at this moment.
        return made if made is not None else self.__dict__.setdefault("_made", threading.Condition())

    @_condition.setter
    def _condition(self, condition: threading.Condition) -> None:
        self._made = condition

    def set_result(self, result: T) -> None:
        try:
            self._unfinished.pop()
        except IndexError:
            raise InvalidStateError(f"{self._state}: {self!r}") from None
        self._result = result
        self._finish(FINISHED)

    def set_exception(self, exception: BaseException | None) -> None:
        try:
            self._unfinished.pop()
        except IndexError:
            raise InvalidStateError(f"{self._state}: {self!r}") from None
        self._exception = exception
        self._finish(FINISHED)

    def cancel(self) -> bool:
        if self._state == RUNNING:
            return False
        try:
            self._unfinished.pop()
        except IndexError:
            return self._state == CANCELLED
        self._finish(CANCELLED)
        return True

    def _finish(self, state: str) -> None:
        self._state = state
        # Looked at after that was set: a thread that makes the condition from now on finds it done.
        if self._made is not None:
            with self._made:
                for waiter in self._waiters:
                    if self._exception is None:
                        waiter.add_result(self)
                    else:
                        waiter.add_exception(self)
                self._made.notify_all()
        if self._done_callbacks:
            self._call_back()

    def renew(self) -> None:
        """In a forked child: a thread of the parent may have been about to finish it, or hold its condition."""
        self._made = threading.Condition()
        if not self.done():
            self._unfinished = [True]

    def _call_back(self) -> None:
        """Call what was to be called when it is done. Each is called once, whoever gets here."""
        callbacks = self._done_callbacks
        while callbacks:
            try:
                callback = callbacks.pop(0)
            except IndexError:
                return
            try:
                callback(self)
            except Exception:
                LOG.exception("a callback of a future raised")

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        self._done_callbacks.append(fn)
        if self.done():
            self._call_back()

    def done(self) -> bool:
        return self._state not in UNDONE

    def result(self, timeout: float | None = None) -> T:
        if self._state != FINISHED:
            return super().result(timeout)
        if self._exception is not None:
            try:
                raise self._exception
            finally:
                del self  # The exception's traceback refers to this frame.
        return self._result  # type: ignore[return-value]

    def exception(self, timeout: float | None = None) -> BaseException | None:
        return self._exception if self._state == FINISHED else super().exception(timeout)


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
    future: Future[Any] = LightFuture()
    future.set_exception(error)
    return future


def done(value: Any = None) -> Future[Any]:
    """A future that has a result."""
    future: Future[Any] = LightFuture()
    future.set_result(value)
    return future


def forget_callback(future: Future[T], callback: Callable[[Future[T]], object]) -> None:
    """Do not call a function when a future is done, unless it is done already. Any thread."""
    with future._condition:
        if not future.done():  # Otherwise the callbacks are being gone through.
            try:
                future._done_callbacks.remove(callback)  # type: ignore[attr-defined]  # of the standard library
            except ValueError:
                pass


def fail_inherited(future: Future[Any]) -> None:
    """Fail a future that a forked child inherited. A thread that exists only in the parent may hold its lock."""
    if isinstance(future, LightFuture):
        future.renew()
    else:
        future._condition = threading.Condition()
    fail(future, CallCancelled("the process forked: what was under way was left to the parent"))
