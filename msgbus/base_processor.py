"""BaseProcessor: what the processing of requests and that of notifications have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod

from msgbus import current, forking
from msgbus.base_transport import BaseTransport
from msgbus.closing import end_child
from msgbus.current import ServerContext
from msgbus.drivers.base import Delivery
from msgbus.executor import Executor, Load
from msgbus.message import Request
from msgbus.server_call import ServerCall
from msgbus.server_calls import ServerCalls
from msgbus.workers import Tasks, Workers


class BaseProcessor(ABC):
    """Runs deliveries on a server's workers, and knows those that are not finished. Thread-safe.

    What is done for each is written as coroutines. They wait only on an event loop: on threads, which run plain methods
    alone, they run to their end at once.

    Attributes:
        transport: where the deliveries come from.
        server: the server's name.
        grace: the option ``rpc_reply_grace``.
        forks: how often the process had forked when it was made.
        calls: the table of what has begun and is not finished.
    """

    def __init__(self, transport: BaseTransport, server: str) -> None:
        """Make one that has not been started."""
        self.transport = transport
        self.server = server
        self.grace: float = transport.option("rpc_reply_grace")
        self.forks = forking.forks
        self.calls = ServerCalls(transport)
        self._context = ServerContext()
        self._workers: Workers = Executor(0, self.process, server, transport.loop)  # until `start`
        self._stopped = True

    def start(self, workers: Workers, tasks: Tasks | None = None) -> None:
        """Run deliveries on `workers`, in copies of the caller's context. Methods that are async need `tasks`."""
        self._context = ServerContext()
        self._workers = workers
        self._stopped = False

    @abstractmethod
    def process(self, item: Delivery | ServerCall) -> None:
        """Begin what was submitted to the workers. On one of these."""

    @abstractmethod
    async def _run(self, call: ServerCall) -> None:
        """Run one, in a context of its own. It must not raise."""

    @abstractmethod
    def may_have(self, request: Request) -> bool:
        """Whether there is such a method, and it may be called."""

    @abstractmethod
    def on_answered(self, call: ServerCall, error: BaseException | None) -> None:
        """See `CallOwner.on_answered`."""

    def stop(self) -> None:
        """The server stops: from now on what is to be run again goes to other servers."""
        self._stopped = True

    def begin_wait(self) -> None:
        """The server's end is going to be waited for. If a request does so, others that do the same ignore it.

        It ignores those of its own batch: they end when it does.
        """
        own = current.running.get()
        if isinstance(own, ServerCall) and own.owner is self:
            self.calls.closers.update(call for call in (own, *own.mates) if not call.finished)

    def wait(self, timeout: float | None) -> int:
        """Wait until all requests but the calling one are finished; returns how many are not in `timeout` seconds.

        `begin_wait` comes first, before other things are waited for.
        """
        own = current.running.get()
        return self.calls.wait(timeout, own if isinstance(own, ServerCall) and own.owner is self else None)

    @property
    def load(self) -> Load:
        """What its threads or tasks are occupied with."""
        return self._workers.load

    def _begin(self, call: ServerCall) -> None:
        """Run a request in a new context, which holds the request and its deadline.

        All of the user's code runs there: serializers, the access policy, the method, each step of a generator, and the
        hook for dead letters.
        """
        self._workers.begin(self._context.copy(), self._run(call))
        if self.forks != forking.forks:  # Wherever it forked: it must not go on as a worker.
            end_child(None)
