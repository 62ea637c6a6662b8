"""The driver ``qpid``: Apache Qpid Broker-J, over AMQP 1.0.

Proton's protocol engine turns messages into frames and frames into messages, see `msgbus.drivers.qpid.engine`. The
loop's thread reads and writes the one connection; other threads pass it their calls. All messages are sent over one
link, which takes any address; each subscribed address has a link with as much credit as its prefetch.
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
import uuid
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from oslo_config import cfg

from msgbus.drivers.base import Address, Capability, import_library
from msgbus.drivers.toolkit.broker import BrokerDriver
from msgbus.drivers.toolkit.loop import Loop
from msgbus.drivers.toolkit.session import Line
from msgbus.drivers.toolkit.tls import check_tls_files
from msgbus.foreign import get_logger
from msgbus.options import connection_opts, hosts_of, read_driver_options

if TYPE_CHECKING:
    from msgbus.drivers.qpid.session import QpidSession
    from msgbus.drivers.qpid.topology import Source
    from msgbus.url import TransportHost, TransportURL

LOG = get_logger(__name__)


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
        help="Create queues, exchanges and bindings when they are needed, over AMQP management. Without it, "
        "everything that services listen to has to exist already.",
    ),
    cfg.BoolOpt(
        "durable",
        default=True,
        help="Store messages that have to outlive a restart of the broker on its disk. Set false for a virtual host "
        "in memory, which refuses them.",
    ),
    cfg.BoolOpt(
        "keep_server_queues",
        default=True,
        help="Keep the queue of one server while the server is away, so that a later server of the same name finds "
        "its requests. Qpid cannot expire it: if names are not used again, set false, and it is deleted with its "
        "server.",
    ),
    cfg.BoolOpt(
        "keep_topic_queues",
        default=True,
        help="Keep the queue of a topic while it has no server, so that casts are stored until one comes. If topics "
        "are not used again, as in tests, set false: then each queue, with its waiting messages, is deleted when "
        "the last server ends or loses its connection.",
    ),
    cfg.IntOpt(
        "queue_limit",
        default=0,
        min=0,
        help="How many messages a queue that msgbus creates may hold; further ones are refused. 0: any number.",
    ),
    cfg.IntOpt(
        "max_message_size",
        default=16 * 1024 * 1024,
        min=1024,
        help="The largest message, in bytes. A lower limit of the broker applies too.",
    ),
    cfg.FloatOpt(
        "connect_timeout", default=5.0, min=0.1, max=3600.0, help="Seconds for one attempt to connect to one host."
    ),
    cfg.IntOpt(
        "heartbeat",
        default=30,
        min=0,
        max=86_400,  # AMQP has 32 bits for milliseconds.
        deprecated_opts=_old("qpid_heartbeat"),
        help="Seconds between heartbeats; a connection that is silent for twice that time is closed. 0: none.",
    ),
    cfg.ListOpt(
        "sasl_mechanisms",
        default=[],
        deprecated_opts=_old("qpid_sasl_mechanisms"),
        help="How to log in: the first of these that the broker offers. EXTERNAL (by the client's certificate), "
        "SCRAM-SHA-512, SCRAM-SHA-256, SCRAM-SHA-1, PLAIN, ANONYMOUS. Default: those that fit, in this order.",
    ),
    cfg.BoolOpt("ssl", default=False, help="Use TLS."),
    cfg.StrOpt("ssl_ca_file", help="The certificates of the authorities to trust. Default: those of the system."),
    cfg.StrOpt("ssl_cert_file", help="The client's certificate."),
    cfg.StrOpt("ssl_key_file", help="The key of the client's certificate."),
    cfg.BoolOpt(
        "ssl_verify",
        default=True,
        help="Check the broker's certificate and that it was issued for the host of the URL. Without it, anybody on "
        "the network path can read and change all messages.",
    ),
]


class QpidDriver(BrokerDriver):
    """See the module's text.

    Attributes:
        declares: the option ``declare``.
        durable: the option ``durable``.
        queue_limit: the option ``queue_limit``.
        connect_timeout: seconds from an open socket until messages can be sent.
        identity: this side's name, the virtual host, and the seconds of silence after which a connection is given up.
    """

    capabilities = frozenset(set(Capability) - {Capability.INBOX_STORAGE})

    @classmethod
    def options(cls) -> tuple[str, Sequence[cfg.Opt]]:
        return "msgbus_qpid", OPTIONS

    def __init__(self, conf: cfg.ConfigOpts, url: TransportURL, loop: Loop) -> None:
        import_library("proton", "qpid")

        self._options = options = read_driver_options(conf, *self.options(), url)
        self._url = url
        self._virtual_host = url.virtual_host or options.virtual_host or ""
        self._check_options()
        self.declares: bool = options.declare
        self.durable: bool = options.durable
        self.queue_limit: int = options.queue_limit
        self.connect_timeout: float = options.connect_timeout
        self.max_message_size = options.max_message_size
        if not options.durable:
            self.capabilities = self.capabilities - {Capability.DURABLE}
        self._warned = False
        super().__init__(loop, hosts_of(options, url))

    def _check_options(self) -> None:
        from msgbus.drivers.qpid.login import KNOWN
        from msgbus.exceptions import ConfigurationError

        check_tls_files(self._options, self._url)
        # In older systems the option was one string, separated by blanks.
        self._mechanisms = " ".join(self._options.sasl_mechanisms).upper().split()
        for name in self._mechanisms:
            if name not in KNOWN:
                raise ConfigurationError(f"sasl_mechanisms of [msgbus_qpid]: {name!r} is not one of {', '.join(KNOWN)}")

    def _start_clean(self) -> None:
        # Import everything now: that takes file descriptors, and later there may be none.
        import encodings.idna  # noqa: F401

        from msgbus.drivers.qpid import session  # noqa: F401

        super()._start_clean()
        # If the broker has not noticed that a connection broke, a new link of the same name and container replaces the
        # old one. So the names stay the same over reconnects, and are unique to this process.
        container = f"{os.path.basename(sys.argv[0])}:{os.getpid()}:{uuid.uuid4().hex[:16]}"
        host = self._virtual_host or self.hosts[0].hostname or "localhost"
        self.identity = (container, host, 2.0 * self._options.heartbeat)

    # Connecting

    def dial(self, host: TransportHost, purpose: str) -> socket.socket:
        from msgbus.drivers.qpid.login import Credentials, open_socket

        options = self._options
        name = host.hostname or "localhost"
        credentials = Credentials(host.username, host.password or "", bool(options.ssl_cert_file), self._mechanisms)
        vhost = self._virtual_host or name
        tls = self._tls() if options.ssl else None
        sock, mechanism = open_socket(name, self._port(host), options.connect_timeout, tls, vhost, credentials)
        if mechanism == "PLAIN" and tls is None and not _is_here(name) and not self._warned:
            self._warned = True
            broker = self.describe(host)
            LOG.warning("the password for %s went over the network in the clear; use ssl=true, or SCRAM", broker)
        return sock

    def discard(self, connection: socket.socket) -> None:
        connection.close()

    def open_session(self, line: Line, connection: socket.socket) -> QpidSession:
        from msgbus.drivers.qpid.session import QpidSession

        return QpidSession(self, line, connection)

    def _tls(self) -> ssl.SSLContext:
        options = self._options
        context = ssl.create_default_context(cafile=options.ssl_ca_file)
        if not options.ssl_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if options.ssl_cert_file:
            context.load_cert_chain(options.ssl_cert_file, options.ssl_key_file)
        return context

    def _port(self, host: TransportHost) -> int:
        return host.port or (5671 if self._options.ssl else 5672)

    def describe(self, host: TransportHost) -> str:
        user = f"user {host.username}" if host.username else "no user"
        vhost = f", virtual host {self._virtual_host}" if self._virtual_host else ""
        return f"Qpid at {host.hostname or 'localhost'}:{self._port(host)} ({user}{vhost})"

    def explain(self, error: BaseException, host: TransportHost) -> tuple[str, bool]:
        from msgbus.drivers.qpid.engine import EngineError
        from msgbus.drivers.qpid.login import LoginRefused, NoMechanism, NotAmqp

        if isinstance(error, EngineError):
            hint, permanent = _explain(error.condition.name)
            return f"{error.condition}; {hint}", permanent
        text = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, LoginRefused):
            return f"{text}; check user and password", True
        if isinstance(error, NoMechanism):
            return f"{text}; check user, password, TLS, and the option sasl_mechanisms", True
        if isinstance(error, NotAmqp):
            return f"{text}; check that this is its port for AMQP 1.0, and whether that speaks TLS", True
        if "during the log-in" in text:
            return f"{text}; check whether this port wants TLS, and see the broker's log", False
        if "closed the connection" in text:
            return f"{text}; see the broker's log", False
        return super().explain(error, host)

    # Addresses

    def check(self, address: Address) -> None:
        _check(address)

    def source(self, address: Address) -> Source:
        """Where an address is received from."""
        from msgbus.drivers.qpid import topology

        options = self._options
        return topology.source(address, keep_servers=options.keep_server_queues, keep_topics=options.keep_topic_queues)


@lru_cache(10_000)
def _check(address: Address) -> None:
    from msgbus.drivers.qpid import topology

    topology.route(address)
    topology.source(address)


def _is_here(host: str) -> bool:
    """Whether a host's name is the loopback's, where nobody else can listen in."""
    return host in ("localhost", "::1") or host.startswith("127.")


def _explain(condition: str) -> tuple[str, bool]:
    """What to check after the broker has ended a connection for that reason, and whether that is permanent."""
    if condition == "amqp:unauthorized-access":
        return "check the user's rights: to the virtual host, and to publish", True
    if condition == "amqp:not-found":
        return "check the virtual host", True
    if condition == "amqp:resource-limit-exceeded":
        return "the broker was silent for too long, or a limit of it is reached: see its log", False
    return "see the broker's log", False
