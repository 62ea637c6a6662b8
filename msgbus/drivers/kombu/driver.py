"""The driver ``kombu`` (also ``rabbit``, ``amqp``): RabbitMQ 3.10 and later.

kombu and py-amqp open the connections: hosts, log-in, TLS. From then on msgbus reads and writes the sockets; see
`msgbus.drivers.kombu.session`. One connection publishes, and one serves subscriptions, since RabbitMQ in a memory alarm
stops reading from connections that publish, and servers have to go on draining. The inbox is on the first: it has no
prefetch, so it needs no acknowledgements to go on; and a client needs only one connection.
"""

from __future__ import annotations

import os
import ssl
import sys
import uuid
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, cast

from oslo_config import cfg

from msgbus.drivers.base import Address, Capability, import_library
from msgbus.drivers.kombu import stock
from msgbus.drivers.kombu.compression import CONTENT_TYPES
from msgbus.drivers.toolkit.broker import BrokerDriver
from msgbus.drivers.toolkit.loop import FOREVER, LINGER, Loop
from msgbus.drivers.toolkit.session import Line
from msgbus.drivers.toolkit.tls import check_tls_files
from msgbus.exceptions import TransportUnavailable
from msgbus.options import connection_opts, hosts_of, read_driver_options

if TYPE_CHECKING:
    from msgbus.drivers.kombu.session import Connection, KombuSession
    from msgbus.drivers.kombu.topology import Route, Topology
    from msgbus.url import TransportHost, TransportURL


MIN_CHANNELS = 3
"""The fewest channels with which a connection can be used: one to send, one for the inbox, and one to ask RabbitMQ."""


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
        help="Seconds that the queue of one server is kept while the server is away. 0 keeps it forever.",
    ),
    cfg.IntOpt(
        "queue_expires",
        default=0,
        min=0,
        help="Seconds that the queue of a topic or pool is kept while nobody uses it. 0 keeps it forever.",
    ),
    cfg.IntOpt(
        "max_message_size",
        default=16 * 1024 * 1024,
        min=1024,
        help="The largest message, in bytes. RabbitMQ 4 accepts 16 MiB by default, and 3.x 128 MiB (its option "
        "max_message_size). For a larger message it closes the channel, with everything in flight on it.",
    ),
    cfg.FloatOpt("connect_timeout", default=5.0, min=0.1, help="Seconds for one attempt to connect to one host."),
    cfg.IntOpt(
        "heartbeat",
        default=30,
        min=0,
        help="Seconds between heartbeats; a connection that is silent for twice that time is closed. 0: none.",
    ),
    cfg.StrOpt(
        "login_method",
        default="PLAIN",
        choices=("PLAIN", "AMQPLAIN", "EXTERNAL"),
        help="How to log in; EXTERNAL uses the client's certificate.",
    ),
    cfg.BoolOpt("ssl", default=False, deprecated_opts=_old("rabbit_use_ssl"), help="Use TLS."),
    cfg.StrOpt(
        "ssl_ca_file",
        deprecated_opts=_old("kombu_ssl_ca_certs"),
        help="The certificates of the authorities to trust. Default: those of the system.",
    ),
    cfg.StrOpt("ssl_cert_file", deprecated_opts=_old("kombu_ssl_certfile"), help="The client's certificate."),
    cfg.StrOpt("ssl_key_file", deprecated_opts=_old("kombu_ssl_keyfile"), help="The key of the client's certificate."),
    cfg.BoolOpt(
        "ssl_verify",
        default=True,
        help="Check RabbitMQ's certificate and that it was issued for the host of the URL. Without it, anybody on the "
        "way can read and change all messages.",
    ),
    *stock.OPTIONS,
]


class KombuDriver(BrokerDriver):
    """See the module's text.

    Attributes:
        topology: what an address is called in RabbitMQ.
        route: where a message to an address goes; raises InvalidTarget if the name is too long.
        compression: how the bodies of messages are compressed; empty: not at all.
        decompressed_max: the most bytes of a received body once it is decompressed; None: it is not decompressed.
        has_more_hosts: more than one host is configured.
        moved_at: when a connection last left a node that does not answer, in seconds of `Loop.now`.
        sessions: the present ones.
    """

    capabilities = frozenset(set(Capability) - {Capability.ATTEMPT_COUNT})
    purposes = ("publishing", "consuming")
    publishes_on_any_thread = True

    @classmethod
    def options(cls) -> tuple[str, Sequence[cfg.Opt]]:
        return "msgbus_kombu", OPTIONS

    def __init__(self, conf: cfg.ConfigOpts, url: TransportURL, loop: Loop) -> None:
        import_library("kombu", "kombu")
        from msgbus.drivers.kombu import topology

        self._options = options = read_driver_options(conf, *self.options(), url)
        hosts = hosts_of(options, url)
        self._virtual_host = url.virtual_host or options.virtual_host
        self.max_message_size = options.max_message_size
        self.connect_timeout = options.connect_timeout
        self.has_more_hosts = len(hosts) > 1
        check_tls_files(options, url)
        native = topology.NativeTopology(
            quorum=options.quorum_queues,
            server_expires=options.server_expires,
            queue_expires=options.queue_expires,
        )
        self.topology: Topology = native
        self.compression = ""
        self.decompressed_max: int | None = None
        if options.topology == "oslo":
            found = stock.read_stock_options(conf, self.options()[0], options, url)
            self.topology = topology.OsloTopology(native, found)
            self.decompressed_max = options.max_message_size
            self.compression = CONTENT_TYPES.get(found.kombu_compression or "", "")
            self.capabilities = _stock_capabilities(found, hosts=len(hosts))
            self.reads_of_others = {stock.GROUP: frozenset(opt.dest for opt in stock.OPTIONS)}
        else:
            stock.refuse_without_topology(conf, self.options()[0], options, url)
            self.capabilities = _capabilities(quorum=options.quorum_queues, hosts=len(hosts))
        self.route: Callable[[Address], Route] = lru_cache(10_000)(self.topology.route)
        super().__init__(loop, hosts)

    def _start_clean(self) -> None:
        # Import everything now: that takes file descriptors, and later there may be none.
        from msgbus.drivers.kombu import session  # noqa: F401

        super()._start_clean()
        self.sessions: tuple[KombuSession, ...] = ()
        self.moved_at = -FOREVER
        self.loop.before_sleep = self._before_sleep
        self.loop.write_rest = self._write

    def _before_sleep(self, is_over: bool) -> float:
        """See `Loop.before_sleep`. What may not wait is written by `_write` right after."""
        rest = FOREVER
        for session in self.sessions:
            has_work = session.unwritten or session.settling
            if has_work and not session.is_urgent and session.holds_back(is_over):
                rest = LINGER
        return rest

    def _write(self) -> None:
        for session in self.sessions:
            # A thread may have left something here since `_before_sleep`: unless the loop lingers, all is written.
            has_work = session.unwritten or session.settling
            if has_work and (session.is_urgent or not self.loop.lingers):
                session.send_all()

    # Connecting

    def dial(self, host: TransportHost, purpose: str) -> Connection:
        import kombu

        options = self._options
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

        transport.Connection = make  # py-amqp leaves the socket open if the log-in fails.
        try:
            opened = cast("Connection", transport.establish_connection())
            if opened.channel_max < MIN_CHANNELS:
                raise TransportUnavailable(
                    f"its channel_max is {opened.channel_max}, and a connection of msgbus needs at least "
                    f"{MIN_CHANNELS} channels: set channel_max in rabbitmq.conf higher"
                )
            return opened
        except BaseException:
            for failed in made:
                failed.collect()
            raise

    def discard(self, connection: Connection) -> None:
        # Else the end of TLS would wait for RabbitMQ's answer, perhaps on a program's event loop.
        connection.transport.sock.setblocking(False)
        connection.transport.close()

    def open_session(self, line: Line, connection: Connection) -> KombuSession:
        from msgbus.drivers.kombu.session import KombuSession

        return KombuSession(self, line, connection)

    def on_move(self, line: Line) -> None:
        """A connection leaves a node that does not answer: the consuming connection to it has to leave too."""
        self.moved_at = self.loop.now()
        other = self.consuming
        if line is self.sending and line.host is other.host and other.session is not None:
            reason = f"{self.name()} does not answer to what is published; the next host is tried"
            self.loop.call(partial(other.lose, reason, move=True))

    def describe(self, host: TransportHost) -> str:
        port = host.port or (5671 if self._options.ssl else 5672)
        where = f"{host.hostname or 'localhost'}:{port}"
        return f"RabbitMQ at {where} (user {host.username}, virtual host {self._virtual_host})"

    def explain(self, error: BaseException, host: TransportHost) -> tuple[str, bool]:
        import amqp.exceptions

        if isinstance(error, amqp.exceptions.AccessRefused):
            check = f"rabbitmqctl authenticate_user {host.username}"
            return f"the log-in was refused; check user, password and login_method: {check}", True
        text = str(error) or type(error).__name__
        if isinstance(error, TransportUnavailable):
            return text, True
        if isinstance(error, amqp.exceptions.NotAllowed):
            return f"{text}; check the virtual host and the user's rights in it: rabbitmqctl list_permissions", True
        if isinstance(error, amqp.exceptions.AMQPError) or "closed the connection" in text:
            return f"{text}; see RabbitMQ's log", False
        return super().explain(error, host)

    # Addresses

    def check(self, address: Address) -> None:
        self.route(address)
        self.topology.queue(address, "0" * 16)

    def leaves(self, address: Address) -> bool:
        return self.topology.queue(address, "").own

    def inbox_name(self) -> str:
        return f"reply_{uuid.uuid4().hex}"


def _capabilities(*, quorum: bool, hosts: int) -> frozenset[Capability]:
    """What can be promised with these options."""
    lacking: set[Capability] = set()
    if not quorum:
        lacking.add(Capability.ATTEMPT_COUNT)
        if hosts > 1:
            lacking.add(Capability.INBOX_STORAGE)  # The inbox is on one node, and the next connection is to another.
    return frozenset(Capability) - lacking


def _stock_capabilities(found: stock.StockOptions, *, hosts: int) -> frozenset[Capability]:
    """The same where everything is declared as stock peers declare it."""
    lacking: set[Capability] = set()
    if not found.survives_restart:
        lacking.add(Capability.DURABLE)
    if not (found.rabbit_quorum_queue and found.rabbit_transient_quorum_queue) or found.rabbit_stream_fanout:
        lacking.add(Capability.ATTEMPT_COUNT)  # Of some queues.
    if found.amqp_auto_delete:
        lacking.add(Capability.STORAGE)
    if hosts > 1 and not found.rabbit_transient_quorum_queue:
        lacking.add(Capability.INBOX_STORAGE)  # As above.
    return frozenset(Capability) - lacking
