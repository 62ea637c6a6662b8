"""Workers: what a server's requests run on, as their processing sees it: threads, or the tasks of an event loop."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, Protocol

from msgbus.drivers.base import Delivery
from msgbus.executor import Load
from msgbus.server_call import ServerCall
from msgbus.stream_sender import Event


class Workers(Protocol):
    """What requests run on: the threads of an `Executor`, or the tasks of an event loop."""

    def submit(self, item: Delivery | ServerCall) -> None:
        """Have `Processor.process` called with an item, soon."""

    def begin(self, context: Context, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in a context: on threads to its end, where it never waits; as a task on an event loop."""

    async def run_plain(self, func: Callable[..., Any], *args: Any) -> Any:
        """Call a function that may block, and return its value."""

    @property
    def load(self) -> Load:
        """What they are occupied with. Any thread."""

    def reacts(self, timeout: float) -> bool:
        """Whether requests could be begun: the event loop, if there is one, reacts in `timeout` seconds. Any thread."""


class Tasks(Workers, Protocol):
    """Workers that also run methods which are ``async``."""

    async def run_async(self, call: ServerCall, work: Coroutine[Any, Any, Any]) -> Any:
        """Await what such a method does. It is cancelled when the client cancels the call.

        Raises:
            Interrupted: the server has stopped, and waits for it no longer.
        """

    def make_event(self) -> Event:
        """What a coroutine waits with."""
