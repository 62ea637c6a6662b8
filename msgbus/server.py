"""RPCServer: listens at its addresses, and hands deliveries to its threads, which run `msgbus.processing`."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from msgbus.dead_lettering import OnDeadLetter
from msgbus.deadline import wait_for
from msgbus.dispatcher import RPCAccessPolicyBase, RPCDispatcher
from msgbus.drivers.base import Address, Capability, Delivery, Message, QueueInfo, Sent, Subscription
from msgbus.drivers.toolkit.loop import Loop
from msgbus.encoding import decode_request
from msgbus.exceptions import InvalidTarget, MessagingException, SerializationError
from msgbus.executor import Executor
from msgbus.foreign import get_logger
from msgbus.forking import call_in_child, fork_count
from msgbus.message import AT_LEAST_ONCE, PING_NAMESPACE
from msgbus.processing import Processor
from msgbus.serializer import Serializer
from msgbus.server_call import ServerCall, time_left
from msgbus.target import Target, topic_hint
from msgbus.transport import Transport, check_transport

LOG = get_logger(__name__)

STOP_TIMEOUT = 5.0
"""Seconds for the message system to confirm that it has stopped delivering."""


def get_rpc_server(
    transport: Transport,
    target: Target,
    endpoints: Sequence[object],
    executor: str | None = None,
    serializer: Serializer | None = None,
    access_policy: type[RPCAccessPolicyBase] | None = None,
    on_dead_letter: OnDeadLetter | None = None,
) -> RPCServer:
    """Make a server. It serves once it is started.

    Args:
        transport: where it listens.
        target: its topic and its name (``server``).
        endpoints: whose methods it runs; see `RPCDispatcher`.
        executor: None or ``"threading"``: each request runs on a thread of a pool.
        serializer: undoes what the client's serializer did to arguments and context, and does the same to results.
        access_policy: which methods may be called; a subclass of `RPCAccessPolicyBase`.
        on_dead_letter: called with each message that is given up, besides the log and the dead letters' address.

    Raises:
        InvalidTarget: topic or server is missing.
        TypeError: the transport or target is something else; an endpoint or the policy is invalid; or something that
            the server would call is ``async``: a method that may be called, the policy, the serializer,
            `on_dead_letter`. The text names it.
        ValueError: an executor that does not exist.
    """
    if executor not in (None, "threading"):
        raise ValueError(f"there is no executor {executor!r}; there is 'threading'")
    return RPCServer(transport, target, RPCDispatcher(endpoints, serializer, access_policy), on_dead_letter)


class _Ping:
    """The endpoint that answers `RPCClient.ping`."""

    target = Target(namespace=PING_NAMESPACE)

    def __init__(self, target: Target) -> None:
        from importlib.metadata import version  # slow to import

        self._answer = {
            "server": target.server,
            "topic": target.topic,
            "host": socket.gethostname(),
            "version": version("msgbus"),
        }

    def ping(self, _ctxt: object) -> dict[str, Any]:
        """Say who this is."""
        return {**self._answer, "pid": os.getpid()}  # It may be that of a forked child.


class RPCServer:
    """Serves a topic: requests to any of its servers, to this server by its name, and to all servers.

    `start`, `stop` and `wait` may be called from any thread, in that order. In a forked child that inherits it, it is a
    server that was not started: the parent's goes on, and the child may start its own.

    Args:
        transport, target, on_dead_letter: as for `get_rpc_server`.
        dispatcher: runs the requests.
        addresses: what it listens to, if not the three addresses of its target.
    """

    def __init__(
        self,
        transport: Transport,
        target: Target,
        dispatcher: RPCDispatcher,
        on_dead_letter: OnDeadLetter | None = None,
        addresses: Sequence[Address] | None = None,
    ) -> None:
        check_transport(transport, "server")
        if not isinstance(target, Target):
            raise TypeError(
                f"a server's target has to be a Target: Target(topic={target!r}, server=NAME), with a name for it"
            )
        if not target.topic or not target.server:
            raise InvalidTarget(f"a server's target needs a topic and a server{topic_hint(target)}", target)
        self.transport = transport
        self.target = target
        self.dispatcher = dispatcher
        from msgbus.configuration import SERVER_OPTIONS

        for name in SERVER_OPTIONS:  # Read now: the server may start much later.
            transport.option(name)
        if transport.option("rpc_ping_enabled"):
            dispatcher.add_endpoint(_Ping(target))
        if addresses is None:
            topic = transport.address(target(server=None, fanout=None))
            addresses = [
                topic,
                topic._replace(kind="server", server=target.server),
                topic._replace(kind="fanout", server=target.server),
            ]
        self._addresses = addresses
        self._on_dead_letter = on_dead_letter
        self._start_clean()
        call_in_child(self._start_clean)

    def _start_clean(self) -> None:
        """Serve nothing. Also in a forked child, where threads and requests are the parent's."""
        self._state = threading.Condition()
        self._subscription: Subscription | None = None
        self._executor: Executor[Delivery | ServerCall] | None = None
        self._stopping = False
        self._processor = Processor(self.transport, self.target.server or "", self.dispatcher, self._on_dead_letter)

    def __repr__(self) -> str:
        if self._subscription is None:
            state = "not serving"
        elif self._stopping:
            state = "stopping"
        else:
            state = "serving" if self._subscription.ready.done() else "starting"
        return f"<RPCServer {self.target}, {state}, over {self.transport}>"

    def start(self, timeout: float | None = None) -> None:
        """Begin to serve; returns when requests will arrive. On a server that runs already: nothing.

        Each request runs in a fresh copy of the context (`contextvars`) in which this is called: no other request sees
        what one sets, and all steps of a generator run in the context of its request.

        Args:
            timeout: seconds to wait for the message system; None means the option ``rpc_response_timeout``.

        Raises:
            TransportUnavailable: it could not be reached in that time.
            CallCancelled: the server was stopped, or its transport closed, meanwhile.
            MessagingException: the message system refuses, for example because of missing permissions.
        """
        if self._subscription is not None and self._subscription.ready.done():
            return
        transport = self.transport
        end = Loop.now() + (transport.option("rpc_response_timeout") if timeout is None else timeout)
        transport.inbox(end)
        with self._state:
            if self._subscription is None or self._executor is None:
                self._stopping = False
                self._executor = Executor(
                    transport.option("executor_thread_pool_size"),
                    self._processor.process,
                    f"msgbus-{self.target.topic}",
                    transport.loop,
                )
                self._processor.start(self._executor)
                # Each delivery that runs holds a thread; the executor queues those for which there is none.
                self._subscription = transport.driver.subscribe(
                    self._addresses, self._executor.submit, prefetch=transport.option("rpc_prefetch")
                )
            subscription, executor = self._subscription, self._executor
        try:  # Without the lock: `stop` and `wait` may put an end to it.
            wait_for(transport.loop, subscription.ready, end, f"{self.target} cannot listen on", transport.driver)
        except BaseException:
            subscription.close()
            executor.close(0)
            self._processor.stop()
            with self._state:
                if self._subscription is subscription:
                    self._subscription = self._executor = None
            raise
        self._warn_of_same_name()
        LOG.info("server %s of topic %s serves on %s", self.target.server, self.target.topic, transport.driver.state)

    def _warn_of_same_name(self) -> None:
        """Log a warning if another server has the same name. This does not block."""
        named = [address for address in self._addresses if address.kind == "server"]
        if not named or Capability.INSPECT not in self.transport.driver.capabilities:
            return

        def look(found: Future[QueueInfo]) -> None:
            if found.exception() is None and found.result().consumers > 1:
                LOG.warning("%s: another server has this name; a request for it goes to either of them", self.target)

        self.transport.driver.inspect(named[0]).add_done_callback(look)

    def stop(self) -> None:
        """Take no new requests, and give back those that no thread has begun. What runs goes on: see `wait`."""
        begun = self._stopping  # Before the lock: `wait` holds it while handlers finish, and one may call this.
        if begun:
            return
        with self._state:
            if self._subscription is None or self._stopping or self._executor is None:
                return
            self._stopping = True
            try:
                self._subscription.stop().result(STOP_TIMEOUT)
            except (MessagingException, TimeoutError) as exc:
                LOG.warning(
                    "%s: the message system did not confirm that it has stopped delivering: %r", self.target, exc
                )
            self._processor.stop()
            for item in self._executor.take_backlog():
                if isinstance(item, ServerCall):
                    self._processor.run_again(item)
                else:
                    self._give_back(item)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until what runs has finished and is answered, then close the subscription.

        A method that the server runs may call it: this does not wait for the request that calls it.

        Args:
            timeout: seconds; None means as long as it takes.

        Returns:
            how many requests were abandoned since they were still running or unanswered.
        """
        self.stop()
        end = None if timeout is None else Loop.now() + timeout
        with self._state:
            if self._subscription is None or self._executor is None:
                return 0
            running = self._executor.close(timeout)
            left = None if end is None else max(0.0, end - Loop.now())
            abandoned = max(running, self._processor.wait(left))
            try:
                self._subscription.close().result(STOP_TIMEOUT)
            except (MessagingException, TimeoutError) as exc:
                LOG.warning("%s: the subscription could not be closed cleanly: %r", self.target, exc)
            self._subscription = self._executor = None
        if abandoned:
            LOG.warning("%s: %d requests were abandoned after %s s", self.target, abandoned, timeout)
        return abandoned

    def reset(self) -> None:
        """Nothing: it is here for callers of oslo.messaging's interface."""

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
            if self._executor is not None:
                self._executor.submit(delivery)
        elif request.call_id is not None and processor.policy_of(request) == AT_LEAST_ONCE:
            delivery.reject(requeue=True)
        else:
            # A message that was given back would look like one that may have run, which is not run again under
            # at_most_once, and counts as an attempt of a cast. So a new copy is sent.
            left = time_left(request, delivery)
            copy = Message(message.body, message.content_type, message.id, left, message.durable)
            call = ServerCall(processor, delivery, request, None, at_least_once=False)
            processor.calls.add(call)

            def done(sent: Future[Sent]) -> None:
                if processor.forks != fork_count():
                    return  # The parent settles it.
                if sent.exception() is None:
                    delivery.accept()
                else:
                    delivery.reject(requeue=True)
                processor.calls.remove(call)

            self.transport.send(delivery.address, copy, mandatory=True).add_done_callback(done)
