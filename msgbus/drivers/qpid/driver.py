"""The driver ``qpid``: Apache Qpid Broker-J, over AMQP 1.0.

Proton's protocol engine makes frames of messages and messages of frames, see `msgbus.drivers.qpid.engine`; one thread
reads and writes the one connection, and is handed all that other threads want of it. What is sent goes over one link
that takes messages to any address; each subscribed address has a link with as much credit as its prefetch.
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any

from oslo_config import cfg

from msgbus.drivers.base import (
    Address,
    Capability,
    Depth,
    Driver,
    Inbox,
    Message,
    OnDelivery,
    Sent,
    Subscription,
    import_library,
)
from msgbus.drivers.toolkit import descriptors
from msgbus.drivers.toolkit.futures import fail, fail_inherited, finish
from msgbus.drivers.toolkit.loop import Loop
from msgbus.exceptions import (
    CallCancelled,
    MessageTooLarge,
    MessageUndeliverable,
    TransportUnavailable,
)
from msgbus.foreign import get_logger
from msgbus.forking import call_in_child
from msgbus.options import check_tls_files, connection_opts, hosts_of, read_driver_options

if TYPE_CHECKING:
    from msgbus.drivers.qpid.consumer import Consumer
    from msgbus.drivers.qpid.engine import Engine
    from msgbus.drivers.qpid.management import Answer
    from msgbus.drivers.qpid.nodes import Nodes
    from msgbus.drivers.qpid.sender import Outgoing
    from msgbus.drivers.qpid.topology import Source
    from msgbus.url import TransportHost, TransportURL

LOG = get_logger(__name__)

CLOSE_TIMEOUT_MIN = 0.5
"""Seconds of it at least for taking leave of subscriptions."""
INSPECT_CONNECT = 0.9
"""Seconds that `inspect` waits for the connection."""


def _old(*names: str) -> list[cfg.DeprecatedOpt]:
    return [cfg.DeprecatedOpt(name, group="DEFAULT") for name in names]


OPTIONS = [
    *connection_opts(
        {
            "hosts": ("qpid_hosts", "qpid_hostname"),
            "port": ("qpid_port",),
            "username": ("qpid_username",),
            "password": ("qpid_password",),
        },
        {"hosts": ["localhost"], "port": None, "username": None, "password": None, "virtual_host": None},
    ),
    cfg.BoolOpt(
        "declare",
        default=True,
        help="Have queues, exchanges and bindings made by those who need them, over AMQP management. Without it, "
        "all that services listen to has to be there already.",
    ),
    cfg.BoolOpt(
        "durable",
        default=True,
        help="Have the broker store messages on its disk that have to outlive its restart. Say false for a virtual "
        "host in memory, which refuses them.",
    ),
    cfg.BoolOpt(
        "keep_server_queues",
        default=True,
        help="Keep the queue of one server while that is away, so that a server which comes back under its name finds "
        "its work. Qpid cannot expire it: where names never come back, say false, and it goes with its server.",
    ),
    cfg.IntOpt(
        "queue_limit",
        default=0,
        min=0,
        help="How many messages a queue that is made here takes; further ones are refused. 0: any number.",
    ),
    cfg.IntOpt(
        "max_message_size",
        default=16 * 1024 * 1024,
        min=1024,
        help="The largest message, in bytes. What the broker says of its own limit is kept as well.",
    ),
    cfg.FloatOpt("connect_timeout", default=5.0, min=0.1, help="Seconds for one try to connect to one host."),
    cfg.IntOpt(
        "heartbeat",
        default=30,
        min=0,
        deprecated_opts=_old("qpid_heartbeat"),
        help="Seconds; a connection on which nothing has come for twice that time is given up. 0: none.",
    ),
    cfg.ListOpt(
        "sasl_mechanisms",
        default=[],
        deprecated_opts=_old("qpid_sasl_mechanisms"),
        help="How to log in, the first that the broker offers: of EXTERNAL (by the client's certificate), "
        "SCRAM-SHA-512, SCRAM-SHA-256, SCRAM-SHA-1, PLAIN, ANONYMOUS. Default: those that fit, in this order.",
    ),
    cfg.BoolOpt("ssl", default=False, help="Use TLS."),
    cfg.StrOpt("ssl_ca_file", help="The certificates that may vouch for the broker's. Default: those of the system."),
    cfg.StrOpt("ssl_cert_file", help="The client's certificate."),
    cfg.StrOpt("ssl_key_file", help="The key of the client's certificate."),
    cfg.BoolOpt(
        "ssl_verify",
        default=True,
        help="Check the broker's certificate and that it was issued for the host of the URL. Without it, anybody on "
        "the way can read and change all messages.",
    ),
]


class QpidDriver(Driver):
    """See the module's text."""

    capabilities = frozenset(set(Capability) - {Capability.INBOX_KEEPS})

    @classmethod
    def options(cls) -> tuple[str, Sequence[cfg.Opt]]:
        return "msgbus_qpid", OPTIONS

    def __init__(self, conf: cfg.ConfigOpts, url: TransportURL, loop: Loop) -> None:
        import_library("proton", "qpid")

        self._options = options = read_driver_options(conf, *self.options(), url)
        self._url = url
        self._hosts = hosts_of(options, url)
        self._virtual_host = url.virtual_host or options.virtual_host or ""
        self._check_options()
        if not options.durable:
            self.capabilities = self.capabilities - {Capability.DURABLE}
        self._loop = loop
        self._warned = False
        self._closed = False
        self._start_clean()
        call_in_child(self._abandon)

    def _check_options(self) -> None:
        from msgbus.drivers.qpid.login import KNOWN
        from msgbus.exceptions import ConfigurationError

        check_tls_files(self._options, self._url)
        # In older systems they stood in one string, with blanks between them.
        self._mechanisms = " ".join(self._options.sasl_mechanisms).upper().split()
        for name in self._mechanisms:
            if name not in KNOWN:
                raise ConfigurationError(f"sasl_mechanisms of [msgbus_qpid]: {name!r} is none of {', '.join(KNOWN)}")

    def _start_clean(self) -> None:
        # All that is needed later is read from the disk now: then there may be no descriptor for it.
        import encodings.idna  # noqa: F401

        from msgbus.drivers.qpid import consumer, nodes  # noqa: F401
        from msgbus.drivers.qpid.sender import Sender
        from msgbus.drivers.qpid.wire import Wire

        options = self._options
        self._closing = threading.Lock()
        self._inboxes: list[Consumer] = []
        self._subscriptions: list[Consumer] = []
        self._leaving: list[Consumer] = []
        self._futures: weakref.WeakSet[Future[Any]] = weakref.WeakSet()
        self._nodes: Nodes | None = None
        # A link of the same name and container takes the place of one that is left on a connection which broke
        # unnoticed at the other end. So the names stay over reconnects, and are no other process's.
        container = f"{os.path.basename(sys.argv[0])}:{os.getpid()}:{uuid.uuid4().hex[:16]}"
        identity = (container, self._virtual_host or self._hosts[0].hostname or "localhost", 2.0 * options.heartbeat)
        self._wire = Wire(self._loop, self, len(self._hosts), identity, options.connect_timeout)
        self._sender = Sender(
            self._loop,
            self._name,
            lambda: self._wire.error,
            self._declare if options.declare else None,
            self._on_relay,
            self._wire.fall,
            durable=options.durable,
        )

    # Connecting

    def connect(self, attempt: int) -> socket.socket:
        """For `Wire`."""
        from msgbus.drivers.qpid.login import Credentials, open_socket

        options = self._options
        host = self._host_of(attempt)
        name = host.hostname or "localhost"
        credentials = Credentials(host.username, host.password or "", bool(options.ssl_cert_file), self._mechanisms)
        vhost = self._virtual_host or name
        tls = self._tls() if options.ssl else None
        sock, mechanism = open_socket(name, self._port(host), options.connect_timeout, tls, vhost, credentials)
        if mechanism == "PLAIN" and tls is None and not _is_here(name) and not self._warned:
            self._warned = True
            LOG.warning("the password for %s went over the network in the clear; use ssl=true, or SCRAM", self._name())
        return sock

    def _tls(self) -> ssl.SSLContext:
        options = self._options
        context = ssl.create_default_context(cafile=options.ssl_ca_file)
        if not options.ssl_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if options.ssl_cert_file:
            context.load_cert_chain(options.ssl_cert_file, options.ssl_key_file)
        return context

    def _host_of(self, attempt: int) -> TransportHost:
        return self._hosts[attempt % len(self._hosts)]

    def _port(self, host: TransportHost) -> int:
        return host.port or (5671 if self._options.ssl else 5672)

    def _name(self, attempt: int | None = None) -> str:
        host = self._host_of(self._wire.attempt if attempt is None else attempt)
        user = f"user {host.username}" if host.username else "no user"
        vhost = f", virtual host {self._virtual_host}" if self._virtual_host else ""
        return f"Qpid at {host.hostname or 'localhost'}:{self._port(host)} ({user}{vhost})"

    @property
    def up_since(self) -> float | None:
        return self._wire.up_since if self._wire.up else None

    @property
    def state(self) -> str:
        if self._closed:
            return f"{self._name()}: closed"
        return self._name() if self._wire.error is None else str(self._wire.error)

    def describe(self, error: BaseException, attempt: int) -> tuple[str, bool]:
        """The one place that makes words of what the operating system, TLS, the log-in and the broker say.

        Returns:
            what happened and what to check, and whether the same would happen again at a second try.
        """
        from msgbus.drivers.qpid.engine import EngineError
        from msgbus.drivers.qpid.login import LoginRefused, NoMechanism, NotAmqp

        text = " ".join(str(error).split()) or type(error).__name__
        hint, hopeless = "check that it runs and that host and port are right", False
        if isinstance(error, EngineError):
            text = str(error.condition)
            hint, hopeless = _explain(error.condition.name)
        elif isinstance(error, LoginRefused):
            hint, hopeless = "check user and password", True
        elif isinstance(error, NoMechanism):
            hint, hopeless = "check user, password, TLS, and the option sasl_mechanisms", True
        elif isinstance(error, NotAmqp):
            hint, hopeless = "check that this is its port for AMQP 1.0, and whether that speaks TLS", True
        elif isinstance(error, ssl.SSLCertVerificationError):
            hint, hopeless = "check ssl_ca_file, and that the certificate was issued for this host name", True
            text = f"its certificate is not trusted: {error.verify_message or error}"
        elif isinstance(error, ssl.SSLError):
            hint, hopeless = "check that this port speaks TLS", True
        elif isinstance(error, TimeoutError):
            text = f"{text} (no answer within {self._options.connect_timeout:g} s)" if text == "timed out" else text
            hint = "check that it runs, is not stuck, and that no firewall is in between"
        elif descriptors.is_shortage(error):
            hint = descriptors.HINT
        elif isinstance(error, UnicodeError):
            hint = "check the host name"
        elif "during the log-in" in text:
            hint = "check whether this port wants TLS, and see the broker's log"
        elif "closed the connection" in text:
            hint = "see the broker's log"
        return f"{self._name(attempt)}: {text}; {hint}", hopeless

    # What the wire says: the loop's thread

    def on_open(self, engine: Engine) -> None:
        """For `Wire`."""
        from msgbus.drivers.qpid.nodes import Nodes

        self._nodes = Nodes(engine, self._options.queue_limit)
        self._sender.connected(engine)

    def _on_relay(self) -> None:
        """Messages can be sent: for the first time on this connection, or again."""
        if self._wire.up:
            self._let_go()
        else:
            self._wire.serve()

    def on_up(self) -> None:
        """For `Wire`."""
        engine = self._wire.engine
        assert engine is not None
        for consumer in (*self._inboxes, *self._subscriptions):
            consumer.start(engine)
        self._let_go()

    def on_down(self, error: TransportUnavailable) -> None:
        """For `Wire`."""
        nodes, self._nodes = self._nodes, None
        for consumer in (*self._inboxes, *self._subscriptions, *self._leaving):
            consumer.down()
        self._sender.down(error)
        if nodes is not None:
            nodes.down(str(error))

    def on_hopeless(self, error: TransportUnavailable) -> None:
        """For `Wire`."""
        self._sender.fail_waiting(error)
        for consumer in (*self._inboxes, *self._subscriptions):
            consumer.hopeless(error)

    def before_write(self) -> None:
        """For `Wire`."""

    def _let_go(self) -> None:
        """What waits may go, once replies to it will arrive."""
        if self._wire.up and all(inbox.is_consuming or inbox.is_refused for inbox in self._inboxes):
            self._sender.release()

    def _declare(self, source: Source, on_declared: Callable[[str | None], None]) -> None:
        if self._nodes is None:
            on_declared("the connection is away")
        else:
            self._nodes.declare(source, on_declared)

    # The contract

    def send(self, address: Address, message: Message, *, mandatory: bool) -> Future[Sent]:
        from msgbus.drivers.qpid.sender import Outgoing

        sent: Future[Sent] = Future()
        try:
            if self._closed:
                raise self._was_closed()
            if len(message.body) > self._options.max_message_size:
                raise self._too_large(address, message)
            self._sender.check(address)
        except Exception as exc:
            sent.set_exception(exc)
            return sent
        self._loop.call_for(sent, self._send, Outgoing(address, message, mandatory, sent))
        return sent

    def _send(self, outgoing: Outgoing) -> None:
        if not self._wire.up:
            self._wire.open()
        self._sender.send(outgoing)

    def _too_large(self, address: Address, message: Message) -> MessageTooLarge:
        return MessageTooLarge(
            f"a message of {len(message.body)} bytes to {address}; the option max_message_size of [msgbus_qpid] is "
            f"{self._options.max_message_size}"
        )

    def _was_closed(self) -> CallCancelled:
        return CallCancelled(f"the connection to {self._name()} was closed")

    def subscribe(self, addresses: Sequence[Address], on_delivery: OnDelivery, *, prefetch: int) -> Subscription:
        return _QpidSubscription(self, self._consume(addresses, on_delivery, prefetch))

    def open_inbox(self, on_delivery: OnDelivery) -> Inbox:
        address = Address("inbox", name=uuid.uuid4().hex)
        return _QpidInbox(self, self._consume([address], on_delivery, 0))

    def _consume(self, addresses: Sequence[Address], on_delivery: OnDelivery, prefetch: int) -> Consumer:
        from msgbus.drivers.qpid import topology
        from msgbus.drivers.qpid.consumer import Consumer

        options = self._options
        consumer = Consumer(
            self._loop,
            self._name,
            uuid.uuid4().hex[:16],
            addresses,
            [topology.source(address, keep_servers=options.keep_server_queues) for address in addresses],
            on_delivery,
            prefetch,
            self._declare if options.declare else None,
            self._let_go,
        )
        if self._closed:
            consumer.refuse(self._was_closed())
            return consumer
        self._futures.add(consumer.ready)
        self._loop.call_for(consumer.ready, self._start, consumer)
        return consumer

    def _start(self, consumer: Consumer) -> None:
        if self._closed:
            consumer.refuse(self._was_closed())
            return
        (self._inboxes if consumer.auto_accept else self._subscriptions).append(consumer)
        engine = self._wire.engine
        if self._wire.up and engine is not None:
            consumer.start(engine)
        else:
            self._wire.open()

    def inspect(self, address: Address) -> Future[Depth]:
        from msgbus.drivers.qpid import topology

        found: Future[Depth] = Future()
        if self._closed:
            found.set_exception(self._was_closed())
            return found
        queue = topology.source(address).queue or ""
        self._futures.add(found)
        self._loop.call_for(found, self._inspect, queue, found, time.monotonic() + INSPECT_CONNECT)
        return found

    def _inspect(self, queue: str, found: Future[Depth], end: float) -> None:
        wire = self._wire
        wire.open()
        if wire.up and self._nodes is not None:
            self._nodes.look_at(queue, lambda answer: self._on_statistics(queue, found, answer))
        elif wire.error is not None or time.monotonic() > end:
            fail(found, wire.error or TransportUnavailable(f"{self._name()} is not connected yet"))
        else:
            self._loop.call_later(0.02, lambda: self._inspect(queue, found, end))  # The first connection is under way.

    def _on_statistics(self, queue: str, found: Future[Depth], answer: Answer) -> None:
        from msgbus.drivers.qpid.management import NOT_FOUND, OK
        from msgbus.drivers.qpid.nodes import explain

        if answer.status == OK and isinstance(answer.body, dict):
            finish(found, Depth(int(answer.body["consumerCount"]), int(answer.body["availableMessages"])))
        elif answer.status == NOT_FOUND:
            fail(found, MessageUndeliverable(f"{self._name()} has no queue {queue}"))
        else:
            fail(found, TransportUnavailable(f"{self._name()} tells nothing of {queue}: {explain(answer)}"))

    def close(self) -> None:
        with self._closing:
            if self._closed:
                return
            self._closed = True
        if not self._loop.started:
            return
        deadline = time.monotonic() + self.close_timeout
        ended: Future[None] = Future()
        if self._loop.is_here:
            self._end(ended)
            return
        unfinished: Future[list[Future[Any]]] = Future()
        self._loop.call_for(unfinished, self._begin_end, unfinished)
        wait([unfinished], self.close_timeout)
        if unfinished.done() and unfinished.exception() is None:
            wait(unfinished.result(), self.close_timeout)
        gone: Future[list[Future[Any]]] = Future()
        self._loop.call_for(gone, self._close_all, gone)
        wait([gone], self.close_timeout)
        if gone.done() and gone.exception() is None:
            wait(gone.result(), max(deadline - time.monotonic(), CLOSE_TIMEOUT_MIN))
        self._loop.call_for(ended, self._end, ended)
        wait([ended], self.close_timeout)

    def _begin_end(self, unfinished: Future[list[Future[Any]]]) -> None:
        error = self._was_closed()
        for consumer in (*self._inboxes, *self._subscriptions):
            consumer.hopeless(error)
        unfinished.set_result(list(self._sender.unfinished()))

    def _close_all(self, gone: Future[list[Future[Any]]]) -> None:
        consumers = (*self._inboxes, *self._subscriptions)
        for consumer in consumers:
            self._close(consumer)
        gone.set_result([consumer.gone for consumer in (*consumers, *self._leaving)])

    def _end(self, ended: Future[None]) -> None:
        error = self._was_closed()
        self._sender.close(error)
        self._wire.close()
        for consumer in (*self._inboxes, *self._subscriptions, *self._leaving):
            consumer.refuse(error)
        for future in list(self._futures):
            fail(future, error)
        ended.set_result(None)

    def _begin_close(self, consumer: Consumer) -> Future[None]:
        consumer.hopeless(CallCancelled(f"what was to be opened on {self._name()} was closed"))
        if self._closed:
            return consumer.gone
        self._loop.call_for(consumer.gone, self._close, consumer)
        return consumer.gone

    def _close(self, consumer: Consumer) -> None:
        for siblings in (self._inboxes, self._subscriptions):
            if consumer in siblings:
                siblings.remove(consumer)
                self._leaving.append(consumer)
                consumer.gone.add_done_callback(lambda _: self._loop.call(self._left, consumer))
                consumer.close()
        self._let_go()

    def _left(self, consumer: Consumer) -> None:
        if consumer in self._leaving:
            self._leaving.remove(consumer)

    def _abandon(self) -> None:
        """In a forked child: the connection is the parent's."""
        futures = [*self._futures, *self._sender.unfinished()]
        self._wire.abandon()
        self._start_clean()
        for future in futures:
            fail_inherited(future)


class _QpidSubscription(Subscription):
    def __init__(self, driver: QpidDriver, consumer: Consumer) -> None:
        self._driver = driver
        self._consumer = consumer
        self.ready = consumer.ready

    def stop(self) -> Future[None]:
        if not self._driver._closed:
            self._driver._loop.call_for(self._consumer.stopped, self._consumer.stop)
        return self._consumer.stopped

    def close(self) -> Future[None]:
        return self._driver._begin_close(self._consumer)


class _QpidInbox(Inbox):
    def __init__(self, driver: QpidDriver, consumer: Consumer) -> None:
        self._driver = driver
        self._consumer = consumer
        self.address = consumer.addresses[0]
        self.ready = consumer.ready

    def close(self) -> Future[None]:
        return self._driver._begin_close(self._consumer)


def _is_here(host: str) -> bool:
    """Whether a host's name is one of this machine's, over which nobody else can listen."""
    return host in ("localhost", "::1") or host.startswith("127.")


def _explain(condition: str) -> tuple[str, bool]:
    """What to check after the broker has ended a connection for that reason, and whether that is hopeless."""
    if condition == "amqp:unauthorized-access":
        return "check the user's rights: to the virtual host, and to publish", True
    if condition == "amqp:not-found":
        return "check the virtual host", True
    if condition == "amqp:resource-limit-exceeded":
        return "the broker was silent for too long, or a limit of it is reached: see its log", False
    return "see the broker's log", False
