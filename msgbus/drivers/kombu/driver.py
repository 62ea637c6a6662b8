"""The driver ``kombu`` (also ``rabbit``, ``amqp``): RabbitMQ 3.10 and later.

kombu and py-amqp open the connections: hosts, log-in, TLS. From then on their sockets are read and written here, see
`msgbus.drivers.kombu.link`. One connection publishes, and one serves subscriptions, since RabbitMQ in a memory alarm
stops reading from connections that publish, and servers have to go on draining. The inbox is on the first: its messages
are not held back by a prefetch, so that it needs no reading; and a client needs only one connection.
"""

from __future__ import annotations

import os
import ssl
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import Future, wait
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

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
from msgbus.drivers.toolkit.loop import FOREVER, Loop
from msgbus.exceptions import (
    CallCancelled,
    MessageTooLarge,
    MessagingException,
    TransportUnavailable,
)
from msgbus.foreign import get_logger
from msgbus.forking import call_in_child
from msgbus.options import check_tls_files, connection_opts, hosts_of, read_driver_options

if TYPE_CHECKING:
    from msgbus.drivers.kombu.channels import Consumer
    from msgbus.drivers.kombu.link import Connection, Link
    from msgbus.url import TransportHost, TransportURL

LOG = get_logger(__name__)

CLOSE_TIMEOUT_MIN = 0.5
"""Seconds of it at least for deleting the queues of inboxes and fanouts."""
INSPECT_CONNECT = 0.9
"""Seconds that `inspect` waits for the first connection."""


def _old(name: str) -> list[cfg.DeprecatedOpt]:
    return [cfg.DeprecatedOpt(name, group="DEFAULT")]


OPTIONS = [
    *connection_opts(
        {
            "hosts": ("rabbit_hosts", "rabbit_host"),
            "port": ("rabbit_port",),
            "username": ("rabbit_userid",),
            "password": ("rabbit_password",),
            "virtual_host": ("rabbit_virtual_host",),
        },
        {"hosts": ["localhost"], "port": None, "username": "guest", "password": "guest", "virtual_host": "/"},
    ),
    cfg.StrOpt(
        "topology",
        default="native",
        choices=("native", "oslo"),
        help="Names and properties of queues and exchanges: msgbus's own, or those of a stock oslo.messaging (then "
        "the exchange msgbus is called openstack), so that both can call each other.",
    ),
    cfg.BoolOpt(
        "quorum_queues",
        default=False,
        help="Use replicated queues, which outlive the loss of a node of a cluster. They also count deliveries.",
    ),
    cfg.IntOpt(
        "server_expires",
        default=1800,
        min=0,
        help="Seconds that the queue of one server is kept while that is away. 0 keeps it for ever.",
    ),
    cfg.IntOpt(
        "queue_expires",
        default=0,
        min=0,
        help="Seconds that the queue of a topic or pool is kept while nobody uses it. 0 keeps it for ever.",
    ),
    cfg.IntOpt(
        "max_message_size",
        default=16 * 1024 * 1024,
        min=1024,
        help="The largest message, in bytes. RabbitMQ 4 takes 16 MiB by default and 3.x 128 MiB (its option "
        "max_message_size); a larger one would cost the channel and what is in flight on it.",
    ),
    cfg.FloatOpt("connect_timeout", default=5.0, min=0.1, help="Seconds for one try to connect to one host."),
    cfg.IntOpt(
        "heartbeat",
        default=30,
        min=0,
        help="Seconds; a connection on which nothing has come for twice that time is given up. 0: none.",
    ),
    cfg.StrOpt(
        "login_method",
        default="PLAIN",
        choices=("PLAIN", "AMQPLAIN", "EXTERNAL"),
        help="How to log in; EXTERNAL is by the client's certificate.",
    ),
    cfg.BoolOpt("ssl", default=False, deprecated_opts=_old("rabbit_use_ssl"), help="Use TLS."),
    cfg.StrOpt(
        "ssl_ca_file",
        deprecated_opts=_old("kombu_ssl_ca_certs"),
        help="The certificates that may vouch for RabbitMQ's. Default: those of the system.",
    ),
    cfg.StrOpt("ssl_cert_file", deprecated_opts=_old("kombu_ssl_certfile"), help="The client's certificate."),
    cfg.StrOpt("ssl_key_file", deprecated_opts=_old("kombu_ssl_keyfile"), help="The key of the client's certificate."),
    cfg.BoolOpt(
        "ssl_verify",
        default=True,
        help="Check RabbitMQ's certificate and that it was issued for the host of the URL. Without it, anybody on the "
        "way can read and change all messages.",
    ),
]


class KombuDriver(Driver):
    """See the module's text."""

    capabilities = frozenset(set(Capability) - {Capability.COUNTS})

    @classmethod
    def options(cls) -> tuple[str, Sequence[cfg.Opt]]:
        return "msgbus_kombu", OPTIONS

    def __init__(self, conf: cfg.ConfigOpts, url: TransportURL, loop: Loop) -> None:
        import_library("kombu", "kombu")
        from msgbus.drivers.kombu import topology

        self._options = options = read_driver_options(conf, *self.options(), url)
        self._url = url
        self._hosts = hosts_of(options, url)
        self._virtual_host = url.virtual_host or options.virtual_host
        check_tls_files(options, url)
        native = topology.NativeTopology(
            quorum=options.quorum_queues,
            server_expires=options.server_expires,
            queue_expires=options.queue_expires,
        )
        oslo = options.topology == "oslo"
        self._topology: topology.Topology = topology.OsloTopology(native) if oslo else native
        self.capabilities = _capabilities(oslo=oslo, quorum=options.quorum_queues, hosts=len(self._hosts))
        self._loop = loop
        self._closed = False
        self._start_clean()
        call_in_child(self._abandon)

    def _start_clean(self) -> None:
        # All of them now: reading a module takes a file descriptor, and later there may be none.
        from msgbus.drivers.kombu import channels, link, publisher, questions

        self._opening = threading.Lock()
        self._new_consumer = channels.Consumer
        self._inboxes: list[Consumer] = []
        self._subscriptions: list[Consumer] = []
        self._leaving: list[Consumer] = []
        self._publish_link = link.Link(
            self._loop,
            len(self._hosts),
            "publishing",
            self._connect,
            self._describe,
            on_up=self._on_publish_up,
            on_down=self._on_publish_down,
            on_blocked=lambda reason: self._publisher.hold() if reason else self._publisher.release(),
            on_tick=self._on_publish_tick,
        )
        self._inspections = questions.Inspections(self._publish_link, self._name)
        routes = lru_cache(10_000)(self._topology.route)
        self._publisher = publisher.Publisher(self._publish_link, routes, self._name, self._trouble, self._publishing)
        self._consume_link = link.Link(
            self._loop,
            len(self._hosts),
            "consuming",
            self._connect,
            self._describe,
            on_up=self._on_consume_up,
            on_down=self._on_consume_down,
            on_blocked=lambda _reason: None,
            on_tick=self._on_consume_tick,
        )
        self._loop.before_sleep = self._before_sleep
        self._loop.has_more = lambda: self._publish_link.has_more or self._consume_link.has_more

    def _before_sleep(self, _over: bool) -> float:
        self._publish_link.send_all()
        self._consume_link.send_all()
        return FOREVER

    # Connecting

    def _connect(self, attempt: int, purpose: str) -> Connection:
        """Open a connection to the host whose turn it is. Blocks."""
        import kombu

        options = self._options
        host = self._host_of(attempt)
        tls: Any = False
        if options.ssl:
            tls = {"cert_reqs": ssl.CERT_REQUIRED if options.ssl_verify else ssl.CERT_NONE}
            if options.ssl_verify:
                tls["server_hostname"] = host.hostname or "localhost"
            names = {"ca_certs": "ssl_ca_file", "certfile": "ssl_cert_file", "keyfile": "ssl_key_file"}
            tls.update({key: value for key, name in names.items() if (value := getattr(options, name))})
        name = f"{os.path.basename(sys.argv[0])}:{os.getpid()}:{purpose}"
        connection: Any = kombu.Connection(  # type: ignore[attr-defined, no-untyped-call]  # made by a lazy module
            hostname=host.hostname or "localhost",
            port=host.port or (5671 if options.ssl else 5672),
            userid=host.username,
            password="guest" if host.password is None else host.password,
            virtual_host=self._virtual_host,
            ssl=tls,
            connect_timeout=options.connect_timeout,
            heartbeat=options.heartbeat,
            login_method=options.login_method,
            transport="pyamqp",
            transport_options={"client_properties": {"connection_name": name, "product": "msgbus"}},
        )
        transport = connection.transport
        made: list[Any] = []

        def make(**arguments: Any) -> Any:
            made.append(type(transport).Connection(**arguments))
            return made[-1]

        transport.Connection = make  # py-amqp leaves the socket open where the log-in fails.
        try:
            return cast("Connection", transport.establish_connection())
        except BaseException:
            for failed in made:
                failed.collect()
            raise

    def _host_of(self, attempt: int) -> TransportHost:
        return self._hosts[attempt % len(self._hosts)]

    def _name(self, attempt: int | None = None) -> str:
        host = self._host_of(self._publish_link.attempt if attempt is None else attempt)
        port = host.port or (5671 if self._options.ssl else 5672)
        where = f"{host.hostname or 'localhost'}:{port}"
        return f"RabbitMQ at {where} (user {host.username}, virtual host {self._virtual_host})"

    def _trouble(self) -> str | None:
        """Why an address is not consumed from though the connection lives, or None."""
        troubles = (consumer.trouble for consumer in (*self._inboxes, *self._subscriptions))
        return next((trouble for trouble in troubles if trouble is not None), None)

    @property
    def up_since(self) -> float | None:
        return self._publish_link.up_since if self._publish_link.up else None

    @property
    def state(self) -> str:
        error = self._publish_link.error or self._consume_link.error
        if error is not None:
            return str(error)
        if (trouble := self._trouble()) is not None:
            return trouble
        blocked = self._publish_link.blocked
        return self._name() if blocked is None else f"{self._name()}, which takes no messages at present ({blocked})"

    def _describe(self, error: BaseException, attempt: int) -> tuple[str, bool]:
        """The one place that makes words of what kombu, py-amqp, TLS and the operating system raise.

        Returns:
            what happened and what to check, and whether the same would happen again at a second try.
        """
        import amqp.exceptions

        text = str(error) or type(error).__name__
        hint, hopeless = "check that it runs and that host and port are right", False
        if isinstance(error, amqp.exceptions.AccessRefused):
            user = self._host_of(attempt).username
            hint, hopeless = f"check user, password and login_method: rabbitmqctl authenticate_user {user}", True
            text = "the log-in was refused"
        elif isinstance(error, amqp.exceptions.NotAllowed):
            hint, hopeless = "check the virtual host and the user's rights in it: rabbitmqctl list_permissions", True
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
        elif isinstance(error, amqp.exceptions.AMQPError) or "closed the connection" in text:
            hint = "see RabbitMQ's log"
        return f"{self._name(attempt)}: {text}; {hint}", hopeless

    # What the links say: the loop's thread

    def _publishing(self) -> None:
        """What waits may go, once replies to it will arrive."""
        if all(inbox.is_consuming for inbox in self._inboxes):
            self._publisher.release()

    def _let_leave(self) -> None:
        """Delete the queues of those who were closed while the connection was away."""
        self._leaving = [consumer for consumer in self._leaving if not consumer.close()]

    def _on_publish_up(self) -> None:
        self._let_leave()
        for inbox in self._inboxes:
            inbox.start()
        self._publisher.connected()

    def _on_publish_down(self, error: TransportUnavailable) -> None:
        if not self._publish_link.generation:
            self._publisher.fail_waiting(error)
            for inbox in list(self._inboxes):
                inbox.hopeless(error)

    def _on_consume_up(self) -> None:
        self._let_leave()
        for subscription in self._subscriptions:
            subscription.start()

    def _on_consume_down(self, error: TransportUnavailable) -> None:
        if not self._consume_link.generation:
            for subscription in list(self._subscriptions):
                subscription.hopeless(error)

    def _on_publish_tick(self, now: float) -> None:
        self._publisher.on_tick(now)
        self._look_at(self._inboxes, self._publish_link, now)
        if not self._publish_link.up and self._host_of(self._publish_link.attempt) is self._host_of(
            self._consume_link.attempt
        ):
            self._consume_link.move(f"{self._name()} does not answer to what is published")

    def _on_consume_tick(self, now: float) -> None:
        self._look_at(self._subscriptions, self._consume_link, now)

    def _look_at(self, consumers: Sequence[Consumer], link: Link, now: float) -> None:
        """Leave a node that does not answer to declarations: it may be cut off from the others of its cluster."""
        from msgbus.drivers.kombu.link import STALLED

        for consumer in consumers:
            consumer.on_tick(now)
            since = consumer.waits_since
            if since is not None and now - since >= STALLED:
                link.move(f"{self._name(link.attempt)} has not declared {consumer.addresses[0]} in {now - since:.0f} s")
                return

    # The contract

    def send(self, address: Address, message: Message, *, mandatory: bool) -> Future[Sent]:
        if len(message.body) > self._options.max_message_size:
            return self._too_large(address, message)
        if not self._publish_link.up:
            if self._closed:
                return self._was_closed()
            try:
                self._publish_link.open()
            except MessagingException as exc:
                refused: Future[Sent] = Future()
                refused.set_exception(exc)
                return refused
        return self._publisher.send(address, message, mandatory)

    def _too_large(self, address: Address, message: Message) -> Future[Sent]:
        sent: Future[Sent] = Future()
        limit = self._options.max_message_size
        sent.set_exception(
            MessageTooLarge(
                f"a message of {len(message.body)} bytes to {address}; {self._name()} takes at most {limit} bytes "
                "(option max_message_size of [msgbus_kombu], and of RabbitMQ)"
            )
        )
        return sent

    def _was_closed(self) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_exception(CallCancelled(f"the connection to {self._name()} was closed"))
        return future

    def subscribe(self, addresses: Sequence[Address], on_delivery: OnDelivery, *, prefetch: int) -> Subscription:
        return _KombuSubscription(self, self._consume(addresses, on_delivery, prefetch, uuid.uuid4().hex[:16]))

    def open_inbox(self, on_delivery: OnDelivery) -> Inbox:
        address = Address("inbox", name=f"reply_{uuid.uuid4().hex}")
        return _KombuInbox(self, self._consume([address], on_delivery, 0, ""))

    def _consume(self, addresses: Sequence[Address], on_delivery: OnDelivery, prefetch: int, unique: str) -> Consumer:
        link, siblings = (self._consume_link, self._subscriptions) if prefetch else (self._publish_link, self._inboxes)
        consumer = self._new_consumer(
            link,
            self._topology,
            self._name,
            addresses,
            on_delivery,
            prefetch,
            unique,
            self._publishing,
        )

        if self._closed:
            consumer.refuse(CallCancelled(f"the connection to {self._name()} was closed"))
            return consumer

        def start() -> None:
            if self._closed:
                self._never_ready([consumer])
            siblings.append(consumer)
            if link.up:
                consumer.start()
            else:
                link.open()

        try:
            self._loop.call(start)
        except MessagingException as exc:
            consumer.refuse(exc)
        return consumer

    def inspect(self, address: Address) -> Future[Depth]:
        if self._closed:
            return self._was_closed()
        found: Future[Depth] = Future()
        self._inspections.unfinished.add(found)
        queue = self._topology.queue(address, "").name
        link = self._publish_link
        end = time.monotonic() + INSPECT_CONNECT

        def start() -> None:
            link.open()
            if link.up or link.error is not None or time.monotonic() > end:
                self._inspections.start(queue, found)
            else:
                self._loop.call_later(0.02, start)  # The first connection is being opened.

        try:
            self._loop.call(start)
        except MessagingException as exc:
            found.set_exception(exc)
        return found

    def close(self) -> None:
        with self._opening:
            if self._closed:
                return
            self._closed = True
        self._never_ready((*self._inboxes, *self._subscriptions))
        deadline = time.monotonic() + self.close_timeout
        self._wait(self._publisher.unfinished(), self.close_timeout)
        gone = [self._begin_close(consumer) for consumer in (*self._inboxes, *self._subscriptions)]
        self._wait(gone, max(deadline - time.monotonic(), CLOSE_TIMEOUT_MIN))
        error = CallCancelled(f"the connection to {self._name()} was closed")
        self._publisher.close(error)
        if self._loop.started:
            ended: Future[None] = Future()
            self._loop.call_for(ended, self._end, ended)
            self._wait([ended], self.close_timeout)
        for found in list(self._inspections.unfinished):
            fail(found, error)
        for consumer in self._leaving:
            consumer.refuse(error)

    def _wait(self, futures: Sequence[Future[Any]], seconds: float) -> None:
        """Wait, except on the loop's own thread, which has to go on for any of them to be done."""
        if not self._loop.is_here:
            wait(futures, seconds)

    def _end(self, ended: Future[None]) -> None:
        self._publish_link.close()
        self._consume_link.close()
        finish(ended)

    def _never_ready(self, consumers: Sequence[Consumer]) -> None:
        """Tell those who wait for these that it is over. Any thread."""
        for consumer in consumers:
            consumer.hopeless(CallCancelled(f"what was to be opened on {self._name()} was closed"))

    def _begin_close(self, consumer: Consumer) -> Future[None]:
        consumer.stopping()
        self._never_ready([consumer])

        def close() -> None:
            for siblings in (self._inboxes, self._subscriptions):
                if consumer in siblings:
                    siblings.remove(consumer)
                    if not consumer.close():
                        self._leaving.append(consumer)

        try:
            self._loop.call(close)
        except MessagingException as exc:
            consumer.refuse(exc)
        return consumer.gone

    def _abandon(self) -> None:
        """In a forked child: the connections are the parent's."""
        consumers = (*self._inboxes, *self._subscriptions)
        unfinished: list[Future[Any]] = [*self._publisher.inherited(), *self._inspections.unfinished]
        unfinished += [consumer.ready for consumer in consumers]
        for link in (self._publish_link, self._consume_link):
            link.abandon()
        self._start_clean()
        for sent in unfinished:
            fail_inherited(sent)


def _capabilities(*, oslo: bool, quorum: bool, hosts: int) -> frozenset[Capability]:
    """What can be promised with these options."""
    lacking: set[Capability] = set()
    if oslo:
        lacking.add(Capability.DURABLE)  # The queues of a stock oslo.messaging do not outlive a restart.
    if oslo or not quorum:
        lacking.add(Capability.COUNTS)
        if hosts > 1:
            lacking.add(Capability.INBOX_KEEPS)  # The inbox is on one node, and the next connection is to another.
    return frozenset(Capability) - lacking


class _KombuSubscription(Subscription):
    def __init__(self, driver: KombuDriver, consumer: Consumer) -> None:
        self._driver = driver
        self._consumer = consumer
        self.ready = consumer.ready

    def stop(self) -> Future[None]:
        stopped, first = self._consumer.stopping()
        if first:
            self._driver._loop.call(self._consumer.stop)
        return stopped

    def close(self) -> Future[None]:
        return self._driver._begin_close(self._consumer)


class _KombuInbox(Inbox):
    def __init__(self, driver: KombuDriver, consumer: Consumer) -> None:
        self._driver = driver
        self._consumer = consumer
        self.address = consumer.addresses[0]
        self.ready = consumer.ready

    def close(self) -> Future[None]:
        return self._driver._begin_close(self._consumer)
