"""BaseServer: what the servers for threads and for asyncio have in common: all that does not wait."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from msgbus.base_listener import BaseListener
from msgbus.base_transport import BaseTransport
from msgbus.dead_lettering import OnDeadLetter
from msgbus.describing import Describe
from msgbus.dispatcher import RPCDispatcher, expose
from msgbus.drivers.base import Address, Capability, Delivery, Message, QueueInfo, Sent
from msgbus.encoding import decode_request
from msgbus.exceptions import InvalidTarget, MessageUndeliverable, SerializationError
from msgbus.foreign import get_logger
from msgbus.forking import fork_count
from msgbus.interceptors import checked_interceptors
from msgbus.message import AT_LEAST_ONCE, AT_MOST_ONCE, PING_NAMESPACE
from msgbus.processing import Processor
from msgbus.server_call import ServerCall, time_left
from msgbus.stats import Stats
from msgbus.target import Target, topic_hint

LOG = get_logger(__name__)


@functools.cache
def own_version() -> str:
    """The version of msgbus. The first call reads files."""
    from importlib.metadata import version  # slow to import

    return version("msgbus")


class Ping:
    """The endpoint that answers `RPCClient.ping`."""

    target = Target(namespace=PING_NAMESPACE)

    def __init__(self, target: Target) -> None:
        self._answer = {
            "server": target.server,
            "topic": target.topic,
            "host": socket.gethostname(),
        }

    @expose
    def ping(self, _ctxt: object) -> dict[str, Any]:
        """Say who this is."""
        return {**self._answer, "version": own_version(), "pid": os.getpid()}  # It may be that of a forked child.


class BaseServer(BaseListener):
    """A server's addresses, its subscription, and the processor of its requests. See `msgbus.RPCServer`."""

    _processor: Processor

    def __init__(
        self,
        transport: BaseTransport,
        target: Target,
        dispatcher: RPCDispatcher,
        on_dead_letter: OnDeadLetter | None = None,
        addresses: Sequence[Address] | None = None,
        interceptors: Sequence[Any] = (),
    ) -> None:
        if not isinstance(target, Target):
            raise TypeError(
                f"a server's target has to be a Target: Target(topic={target!r}, server=NAME), with a name for it"
            )
        if not target.topic or not target.server:
            raise InvalidTarget(f"a server's target needs a topic and a server{topic_hint(target)}", target)
        self.target = target
        self.dispatcher = dispatcher
        from msgbus.configuration import SERVER_OPTIONS

        for name in SERVER_OPTIONS:  # Read now: the server may start much later.
            transport.option(name)
        ping = Ping(target)
        if transport.option("rpc_ping_enabled"):
            dispatcher.add_endpoint(ping)
            dispatcher.answers_stock_ping = True
        built_in = transport.option("rpc_built_in_methods")
        if "describe" in built_in:
            dispatcher.add_endpoint(Describe(target, dispatcher))
        self._stats = Stats(ping.ping)
        if "stats" in built_in:
            dispatcher.add_endpoint(self._stats)
        if addresses is None:
            topic = transport.address(target(server=None, fanout=None))
            addresses = [
                topic,
                topic._replace(kind="server", server=target.server),
                topic._replace(kind="fanout", server=target.server),
            ]
        asynchronous = dispatcher.asynchronous
        super().__init__(transport, str(target), addresses, asynchronous=asynchronous)
        self._on_dead_letter = on_dead_letter
        self._interceptors = checked_interceptors(interceptors, asynchronous=asynchronous, owner="this server")
        for endpoint in dispatcher.in_namespace(PING_NAMESPACE) if self._interceptors else ():
            if not isinstance(endpoint, Ping | Describe | Stats):
                raise TypeError(
                    f"endpoint {endpoint!r} has the namespace {PING_NAMESPACE!r}, which is for msgbus's own methods, "
                    "and interceptors would not see its requests: choose another namespace"
                )
        self._start_clean()

    def _start_clean(self) -> None:
        """Serve nothing."""
        super()._start_clean()
        self._processor = Processor(
            self.transport, self.target.server or "", self.dispatcher, self._on_dead_letter, self._interceptors
        )
        self._stats.processor = self._processor

    def _on_started(self) -> None:
        self._warn_of_same_name()
        LOG.info(
            "server %s of topic %s serves on %s", self.target.server, self.target.topic, self.transport.driver.state
        )

    def _warn_of_same_name(self) -> None:
        """Log a warning if another server has the same name. This does not block."""
        named = [address for address in self._addresses if address.kind == "server"]
        if not named or Capability.INSPECT not in self.transport.driver.capabilities:
            return

        def look(found: Future[QueueInfo]) -> None:
            if found.exception() is None and found.result().consumers > 1:
                LOG.warning("%s: another server has this name; a request for it goes to either of them", self.target)

        self.transport.driver.inspect(named[0]).add_done_callback(look)

    def _give_back_all(self, backlog: Sequence[Delivery | ServerCall]) -> None:
        """Let other servers run what has not begun here."""
        for item in backlog:
            if isinstance(item, ServerCall):
                self._processor.failed_casts.run_again(item)
            else:
                self._give_back(item)

    def _give_back(self, delivery: Delivery) -> None:
        """Let another server run what has not begun here."""
        processor, message = self._processor, delivery.message
        try:
            request = decode_request(message.body, message.content_type)
        except SerializationError:
            processor.process(delivery)  # Other servers cannot read it either; this drops and logs it.
            return
        if delivery.address.kind in ("fanout", "pool") or delivery.redelivered:
            # Only this server has it (nobody can send to a pool), or it has to count as one that may have run.
            if self._workers is not None:
                self._workers.submit(delivery)
        elif request.call_id is not None and processor.policy_of(request) == AT_LEAST_ONCE:
            delivery.reject(requeue=True)
        else:
            # A message that was given back would look like one that may have run, which is not run again under
            # at_most_once, and counts as an attempt of a cast. So a new copy is sent.
            left = time_left(request, delivery)
            copy = Message(message.body, message.content_type, message.id, left, message.durable)
            call = ServerCall(processor, delivery, request, None, at_least_once=False)
            call.waits = True
            processor.calls.add(call)

            def done(sent: Future[Sent]) -> None:
                if processor.forks != fork_count():
                    return  # The parent settles it.
                error = sent.exception()
                if isinstance(error, MessageUndeliverable) and processor.policy_of(request) == AT_MOST_ONCE:
                    processor.give_up_unbegun(call, error)
                    return
                if error is None:
                    delivery.accept()
                else:
                    delivery.reject(requeue=True)
                processor.calls.remove(call)

            self.transport.send(delivery.address, copy, mandatory=True).add_done_callback(done)
