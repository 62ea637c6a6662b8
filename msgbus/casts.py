"""BaseCasts: many casts on their way at once. Casts: for `RPCClient.cast_many`, where a thread waits for them."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from typing import Any

from msgbus.base_transport import INSPECT_TIMEOUT, BaseTransport
from msgbus.drivers.base import Address, Message, Sent
from msgbus.drivers.toolkit.loop import Loop
from msgbus.exceptions import CallCancelled, CastsFailed, MessageDeliveryFailure, MessagingException
from msgbus.transport import Transport

CastRequest = tuple[str, dict[str, Any]]
"""A method's name and its arguments."""

Write = Callable[[str, dict[str, Any], float], Message | None]
"""Makes a message of a method, its arguments, and the deadline in seconds of `Loop.now`; None if none is to be sent."""


class BaseCasts(ABC):
    """Sends casts one after another, and does not wait for one to be confirmed before it sends the next.

    Each takes a place in the send window until its outcome is known. All of them together take at most half of the
    window, which leaves room for other threads.

    One thread uses it. The outcomes come on any thread. What waits is in the subclasses.
    """

    def __init__(
        self,
        transport: BaseTransport,
        address: Address,
        *,
        repeat: bool,
        fallback: Address | None,
        seconds: float,
        end: float,
    ) -> None:
        """Send to `address`.

        Args:
            transport: over which.
            address: where to.
            repeat: send again what may have been lost.
            fallback: another address, for each cast that finds nobody at the first.
            seconds: how long the sending of each cast may take.
            end: when all have to be sent, in seconds of `Loop.now`.
        """
        self._transport = transport
        self._address = address
        self._mandatory = address.kind != "fanout"
        self._repeat = repeat
        self._fallback = fallback
        self._seconds = seconds
        self._end = end
        self._most = max(1, transport.window.size // 2)
        self._begun = 0
        # Each change of these two is a single step of the interpreter.
        self._in_flight: dict[int, str] = {}  # the method's name, by number
        self._failed: dict[int, Exception] = {}
        self._awaited = -1  # `_wake` is called when so few are in flight
        self._deadline = 0.0  # of the last one that was sent

    @abstractmethod
    def _wake(self) -> None:
        """As few are in flight as is waited for. Any thread."""

    def _next_deadline(self) -> float:
        return min(Loop.now() + self._seconds, self._end)

    def _refuse(self, error: Exception) -> None:
        """Note the outcome of a request that is not sent."""
        self._failed[self._begun] = error
        self._begun += 1

    def _add_note(self, error: Exception) -> None:
        """Say in an error of the iterable what has become of the casts."""
        error.add_note(str(self._failure()) if self._failed else f"{self._begun} casts were confirmed before")

    def _result(self) -> int:
        """How many were sent.

        Raises:
            CastsFailed: at least one was not confirmed.
        """
        if self._failed:
            failure = self._failure()
            raise failure from failure.error
        return self._begun

    def _give_up(self) -> None:
        """Nobody waits any longer: what is not known by now never will be, and is noted as such."""
        for number in list(self._in_flight):
            self._on_outcome(number, self._transport.unconfirmed())

    def _failure(self) -> CastsFailed:
        return CastsFailed(dict(sorted(self._failed.items())), self._begun)

    def _send(self, request: CastRequest, write: Write, deadline: float) -> None:
        """Send a request that has a place in the window; an error is noted as its outcome."""
        number, (method, kwargs) = self._begun, request
        self._begun += 1
        self._in_flight[number] = method
        self._deadline = deadline
        try:
            message = write(method, kwargs, deadline)
            if message is None:
                self._on_outcome(number, None)
                return
            sent = self._transport.send(
                self._address,
                message,
                mandatory=self._mandatory,
                fallback=self._fallback,
                until=deadline if self._repeat else None,
                on_outcome=partial(self._on_outcome, number),
            )
            if not self._repeat:
                sent.add_done_callback(partial(self._on_sent, number))
        except BaseException as exc:
            self._on_outcome(number, exc)
            if not isinstance(exc, Exception):
                raise

    def _on_sent(self, number: int, sent: Future[Sent]) -> None:
        self._on_outcome(number, sent.exception())

    def _on_outcome(self, number: int, error: BaseException | None) -> None:
        """Note the outcome of a cast; only the first one counts. Any thread."""
        method = self._in_flight.get(number)
        if method is not None and isinstance(error, Exception):
            self._failed[number] = self._explain(method, error)
        # After that: when nothing is in flight, all failures are noted.
        if self._in_flight.pop(number, None) is None:
            return
        self._transport.window.release()
        if len(self._in_flight) <= self._awaited:
            self._wake()

    def _explain(self, method: str, error: Exception) -> Exception:
        if not isinstance(error, MessageDeliveryFailure | CallCancelled):  # The request cannot be written.
            return error
        return self._transport.send_failure(f"{method!r} on {self._address}", error, repeated=self._repeat)


class Casts(BaseCasts):
    """Casts for whose outcome a thread waits."""

    _transport: Transport

    def run(self, requests: Iterable[CastRequest], write: Write) -> int:
        """Send all requests, and return how many there were once all are confirmed.

        Raises:
            CastsFailed: at least one was not confirmed.
            Exception: what the iterable raises, once the outcome of all that were sent is known.
        """
        self._ready = threading.Lock()
        self._ready.acquire()
        iterator = iter(requests)
        while True:
            if len(self._in_flight) >= self._most:
                self._wait(self._most // 2)
            if self._failed:
                break
            try:
                request = next(iterator)
            except StopIteration:
                break
            except Exception as exc:
                self._wait(0)
                self._add_note(exc)
                raise
            if self._failed:  # It may have taken long to get that request.
                break
            deadline = self._next_deadline()
            try:
                checked = checked_request(request)
                self._transport.slot(deadline, checked[0], self._address)
            except (MessagingException, TypeError) as exc:
                self._refuse(exc)
            else:
                self._send(checked, write, deadline)
        self._wait(0)
        return self._result()

    def _wake(self) -> None:
        self._transport.loop.wake(self._ready)

    def _wait(self, most: int) -> None:
        """Wait until at most so many are in flight."""
        loop, until = self._transport.loop, self._deadline + INSPECT_TIMEOUT
        self._awaited = most
        while len(self._in_flight) > most and Loop.now() < until:
            loop.wait(self._ready, until)
        self._awaited = -1
        if len(self._in_flight) > most:
            self._give_up()


def checked_request(request: object) -> CastRequest:
    """A request, if it is one.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(request, tuple | list) and len(request) == 2:
        method, kwargs = request
        if isinstance(method, str) and isinstance(kwargs, dict):
            return method, kwargs
    raise TypeError(
        "each request of cast_many is a pair of a method's name and a dict of its arguments: "
        f"('METHOD', {{'name': value}}). This one, of type {type(request).__name__}, is not"
    )
