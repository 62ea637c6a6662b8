"""The driver redis: where Redis is, and how to connect to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

from oslo_config import cfg
from redis.asyncio.connection import Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError

from msgbus.drivers.base import Address, Capability
from msgbus.drivers.toolkit.aio import DriverEventLoop, event_loop_of
from msgbus.drivers.toolkit.broker import BrokerDriver
from msgbus.drivers.toolkit.connecting import peer_of
from msgbus.drivers.toolkit.loop import Loop
from msgbus.drivers.toolkit.session import Line, Session
from msgbus.drivers.toolkit.tls import check_tls_files
from msgbus.exceptions import InvalidTransportURL
from msgbus.options import connection_opts, hosts_of, read_driver_options
from msgbus.url import TransportHost, TransportURL
from msgbus_redis import connection, errors
from msgbus_redis.connection import CONNECT_TIMEOUT, Link, ask
from msgbus_redis.errors import Replica, Unsuitable
from msgbus_redis.session import RedisSession

OLDEST: Final = (6, 2)  # the first Redis whose commands suffice


@dataclasses.dataclass(frozen=True, slots=True)
class Dialled:
    """A connection that was opened, and the event loop that it belongs to."""

    loop: DriverEventLoop
    link: Link
    host: TransportHost
    peer: str
    clock: float


class RedisDriver(BrokerDriver):
    """Where Redis is, and how to connect to it."""

    contract = (2, 0)
    capabilities = frozenset(Capability)

    @classmethod
    def options(cls) -> tuple[str, Sequence[cfg.Opt]]:
        return "msgbus_redis", [
            *connection_opts({}, {"port": 6379, "virtual_host": "0"}),
            cfg.IntOpt("max_message_size", default=16 * 1024 * 1024, min=1, help="The largest message, in bytes."),
            cfg.IntOpt(
                "max_queue_length",
                default=100_000,
                min=1,
                help="The most messages that wait or are open in one queue; what is sent then has to wait.",
            ),
            cfg.BoolOpt(
                "durable",
                default=True,
                help="Whether messages have to outlive a restart of Redis. Then it is required to have appendonly yes.",
            ),
            cfg.BoolOpt("ssl", default=False, help="TLS, as has a URL that begins with rediss://."),
            cfg.StrOpt("ssl_ca_file", help="The certificates that are trusted; those of the system without it."),
            cfg.StrOpt("ssl_cert_file", help="This side's certificate, where Redis wants one."),
            cfg.StrOpt("ssl_key_file", help="The key of that certificate."),
        ]

    def __init__(self, conf: cfg.ConfigOpts, url: TransportURL, loop: Loop) -> None:
        if url.transport == "rediss":
            url = dataclasses.replace(url, query={**url.query, "ssl": "true"})
        self._options = options = read_driver_options(conf, *self.options(), url)
        check_tls_files(options, url)
        database = url.virtual_host or options.virtual_host or "0"
        if not (database.isascii() and database.isdecimal()):
            raise InvalidTransportURL(str(url), f"{database!r} is no database of Redis: they have numbers, as in /0")
        self._database = int(database)
        self._driver_info = _driver_info()
        self.max_message_size = options.max_message_size
        self.max_queue_length: int = options.max_queue_length
        if not options.durable:
            self.capabilities = self.capabilities - {Capability.DURABLE}
        super().__init__(loop, hosts_of(options, url))

    def describe(self, host: TransportHost) -> str:
        user = f" (user {host.username})" if host.username else ""
        return f"Redis at {host.hostname or 'localhost'}:{host.port}/{self._database}{user}"

    def leaves(self, address: Address) -> bool:
        return True  # Its registration, and what it has open.

    def explain(self, error: BaseException, host: TransportHost) -> tuple[str, bool]:
        return errors.explain(error) or super().explain(errors.cause_of(error), host)

    # Connecting

    def link_to(self, host: TransportHost) -> Link:
        """A connection that is not open yet. For the event loop on which it is opened."""
        options = self._options
        words: dict[str, Any] = {
            "host": host.hostname or "localhost",
            "port": host.port,
            "db": self._database,
            "username": host.username,
            "password": host.password,
            "socket_timeout": None,  # the session looks for silence
            "socket_connect_timeout": CONNECT_TIMEOUT,
            "retry": Retry(NoBackoff(), 0),
            "retry_on_error": [],
            "health_check_interval": 0,
            "protocol": 2,
            "client_name": "msgbus",
            **self._driver_info,
        }
        if not options.ssl:
            return Connection(**words)
        words["ssl_ca_certs"] = options.ssl_ca_file
        words["ssl_certfile"] = options.ssl_cert_file
        words["ssl_keyfile"] = options.ssl_key_file
        return SSLConnection(**words, ssl_check_hostname=True)

    def dial(self, host: TransportHost, purpose: str) -> Dialled:
        loop = event_loop_of(self.loop)
        link = self.link_to(host)
        try:
            return loop.run(self._connect(loop, link, host))
        except BaseException:
            loop.end(connection.close(link), CONNECT_TIMEOUT)
            raise

    async def _connect(self, loop: DriverEventLoop, link: Link, host: TransportHost) -> Dialled:
        await connection.connect(link)
        self._check_server(_fields(await ask(link, CONNECT_TIMEOUT, "INFO")))
        await connection.load_scripts(link)
        seconds, micros = await ask(link, CONNECT_TIMEOUT, "TIME")
        clock = int(seconds) + int(micros) / 1e6 - self.loop.now()
        writer = link._writer
        peer = peer_of(writer.get_extra_info("socket")) if writer is not None else ""
        return Dialled(loop, link, host, peer, clock)

    def _check_server(self, info: dict[str, str]) -> None:
        """See that messages are safe on this Redis, as far as it says.

        Raises:
            Unsuitable: they are not.
            Replica: it takes none.
            BusyLoadingError: it takes none yet.
        """
        if info.get("loading") == "1":  # what it says of its append-only file is not true yet
            raise BusyLoadingError("it still reads its data")
        version = info.get("redis_version", "0")
        if tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) < OLDEST:
            raise Unsuitable(f"it is version {version}; 6.2 or newer is needed")
        if info.get("redis_mode") == "cluster":
            raise Unsuitable("it is a Redis Cluster, which this driver cannot use; name a Redis of its own")
        if info.get("maxmemory", "0") != "0" and info.get("maxmemory_policy") != "noeviction":
            raise Unsuitable("it drops messages when memory runs out; set its maxmemory-policy to noeviction")
        if self._options.durable and info.get("aof_enabled") != "1":
            raise Unsuitable("it forgets messages when it restarts; set its appendonly to yes, or durable=false here")
        if info.get("role") == "slave":
            raise Replica("it is a replica")

    def discard(self, connection_: Dialled) -> None:
        connection_.loop.end(connection.close(connection_.link), CONNECT_TIMEOUT)

    def open_session(self, line: Line, connection_: Dialled) -> Session:
        return RedisSession(self, line, connection_)


def _driver_info() -> dict[str, Any]:
    """What redis-py says of itself: else it would read files for each connection, perhaps on a program's event loop."""
    try:
        from redis.driver_info import DriverInfo
    except ImportError:  # of redis-py before 7.2, which reads them once
        return {}
    return {"driver_info": DriverInfo()}


def _fields(info: bytes) -> dict[str, str]:
    lines = info.decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)
