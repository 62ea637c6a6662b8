"""The driver ``zmq``: no broker; the processes talk to each other directly, over ZeroMQ.

Each process is a node. Nodes find each other through a matchmaker: by default, those of one user on one host in a
directory; those of many hosts by a file, or in a Redis. For its own messages a node acts as the broker: see
`msgbus.drivers.zmq.sender`. So a message that a server has survives the death of that server, but not the deaths of
both the server and the sender; nothing is stored for servers that are not running.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from oslo_config import cfg

from msgbus.configuration import read_option
from msgbus.drivers.base import (
    Address,
    Capability,
    Inbox,
    Message,
    OnDelivery,
    QueueInfo,
    Sent,
    Subscription,
    import_library,
)
from msgbus.drivers.toolkit.futures import LightFuture, done, failed
from msgbus.drivers.toolkit.loop import Loop
from msgbus.drivers.toolkit.shell import DriverShell
from msgbus.drivers.zmq.link import LinkSettings
from msgbus.drivers.zmq.matchmakers.base import Matchmaker, advertised
from msgbus.drivers.zmq.matchmakers.file import FileMatchmaker
from msgbus.drivers.zmq.matchmakers.local import LocalMatchmaker, default_run_dir
from msgbus.drivers.zmq.matchmakers.redis import RedisMatchmaker
from msgbus.drivers.zmq.matchmakers.redis_server import Server
from msgbus.drivers.zmq.queue import Parcel
from msgbus.exceptions import (
    CallCancelled,
    CapabilityMissing,
    ConfigurationError,
    InvalidTarget,
    InvalidTransportURL,
    MessageTooLarge,
)
from msgbus.options import read_driver_options
from msgbus.url import mask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from msgbus.drivers.zmq.security import Security
    from msgbus.drivers.zmq.serving import LocalConsumer
    from msgbus.url import TransportURL


_SENDABLE = ("topic", "server", "fanout", "inbox")
_ANY_HOST = ("*", "0.0.0.0", "[::]", "::")  # noqa: S104  # to be refused

OPTIONS = [
    cfg.StrOpt(
        "run_dir",
        help="The directory in which the processes of this host find each other, and keep their sockets. It may also "
        "be the path of the URL: zmq:///path. Default: msgbus in $XDG_RUNTIME_DIR, else /tmp/msgbus-UID. Only "
        "its owner may write to it.",
    ),
    cfg.StrOpt(
        "matchmaker",
        default="local",
        choices=("local", "file", "redis"),
        help="How nodes find each other; local: the processes of one user on one host; file: the servers that "
        "matchmaker_file names; redis: all nodes that use the Redis at redis_url.",
    ),
    cfg.StrOpt(
        "matchmaker_file",
        help='For matchmaker = file: a JSON file, {"TOPIC": {"SERVER": "HOST:PORT"}}; with keys, in place of '
        '"HOST:PORT", {"address": "HOST:PORT", "key": "NAME"} where NAME.key is in keys_dir. It is read again when '
        "it changes.",
    ),
    cfg.StrOpt(
        "redis_url",
        secret=True,
        sample_default="redis://USER:PASSWORD@HOST:6379/0",
        help="For matchmaker = redis: the address of Redis; rediss:// for TLS. Needs pip install 'msgbus[redis]'.",
    ),
    cfg.StrOpt(
        "listen",
        default="",
        help="An endpoint to listen at besides the Unix socket, for example tcp://10.0.0.5:9501; an asterisk as port "
        "means any free one. All but tcp://127.0.0.1 needs key_file and keys_dir. Servers need this option with the "
        "matchmakers file and redis.",
    ),
    cfg.StrOpt(
        "advertise",
        default="",
        help="HOST or HOST:PORT by which other hosts reach this node, if it differs from listen: because listen has "
        "an asterisk as host, or because of NAT.",
    ),
    cfg.StrOpt(
        "key_file",
        help="The file with this node's secret key, made by msgbus zmq-keys; only its owner may read it. With it, all "
        "TCP connections are encrypted (CURVE).",
    ),
    cfg.StrOpt(
        "keys_dir",
        help="The directory with the public keys, NAME.key, of all nodes that may connect to this one, and to which "
        "this one connects. It does not need its own key. It is read again when it changes.",
    ),
    cfg.BoolOpt(
        "insecure_let_anybody_send_and_read",
        default=False,
        help="Listen at, and connect to, other hosts without keys: anybody who reaches the port can call all methods, "
        "and anybody on the network path can read and change all messages.",
    ),
    cfg.IntOpt(
        "max_message_size",
        default=16 * 1024 * 1024,
        min=1024,
        max=2**31,  # The protocol has four bytes for the size of a record.
        help="The largest message, in bytes, that is sent or accepted.",
    ),
    cfg.IntOpt(
        "backlog",
        default=1000,
        min=1,
        help="How many messages a server stores for each of its addresses, in addition to its prefetch. Further "
        "messages wait at their senders.",
    ),
    cfg.FloatOpt(
        "server_expires",
        default=1800.0,
        min=0.0,
        help="Seconds that a message without a time limit, whose server has died, is kept for another server.",
    ),
    cfg.FloatOpt(
        "connect_timeout", default=5.0, min=0.1, max=3600.0, help="Seconds for one attempt to connect to a node."
    ),
    cfg.FloatOpt(
        "heartbeat",
        default=5.0,
        min=0.0,
        max=2000.0,  # Three times as much is libzmq's limit.
        help="Seconds between two heartbeats; a node that is silent for twice as long counts as lost. 0: none.",
    ),
]


class ZmqDriver(DriverShell):
    """See the module's text."""

    capabilities = frozenset({Capability.ORDERED, Capability.INSPECT, Capability.REQUEUE})

    @classmethod
    def options(cls) -> tuple[str, Sequence[cfg.Opt]]:
        return "msgbus_zmq", OPTIONS

    def __init__(self, conf: cfg.ConfigOpts, url: TransportURL, loop: Loop) -> None:
        import_library("zmq", "zmq")
        self._options = options = read_driver_options(conf, *self.options(), url)
        if url.hosts:
            raise InvalidTransportURL(
                mask(url.unmasked()), "zmq has no hosts: write zmq:// alone, and see the option matchmaker"
            )
        path = f"/{url.virtual_host.lstrip('/')}" if url.virtual_host else None
        if path and "run_dir" in url.query:
            raise InvalidTransportURL(str(url), "it names the run directory twice, as path and as run_dir")
        self._run_dir = os.path.abspath(path or options.run_dir or default_run_dir())
        self._exchange: str = read_option(conf, "control_exchange")
        super().__init__(loop)

    def _start_clean(self) -> None:
        from msgbus.drivers.zmq.node import Node
        from msgbus.drivers.zmq.security import Security

        super()._start_clean()
        options = self._options
        _check_addresses(options.listen, options.advertise)
        security = Security(
            options.key_file, options.keys_dir, options.insecure_let_anybody_send_and_read, options.listen
        )
        self._where, matchmaker = self._choose_matchmaker(security)
        self._node = Node(
            self.loop,
            matchmaker,
            LinkSettings(options.max_message_size, options.connect_timeout, options.heartbeat, security),
            listen=options.listen,
            advertise=options.advertise,
            backlog=options.backlog,
            server_expires=options.server_expires,
        )

    def _choose_matchmaker(self, security: Security) -> tuple[str, Matchmaker]:
        """The matchmaker, and where nodes meet, in words.

        Raises:
            ConfigurationError: an option that it needs is missing or wrong.
            DriverLoadFailure: a library is missing.
        """
        options = self._options
        if options.matchmaker == "local":
            return f"in {self._run_dir}", LocalMatchmaker(self._run_dir)
        own = advertised(options.listen, options.advertise).removeprefix("tcp://")
        host, _, port = own.rpartition(":")
        if options.listen and host in _ANY_HOST:
            raise ConfigurationError(
                f"listen of [msgbus_zmq] is {options.listen}, which does not say how other hosts reach this one: set "
                "advertise to its name or address"
            )
        if options.matchmaker == "redis":
            if not options.redis_url:
                raise ConfigurationError("matchmaker of [msgbus_zmq] is redis: set redis_url to its address")
            server = Server(options.redis_url)
            made = RedisMatchmaker(self.loop, server, self._run_dir, self._on_change)
            return f"with Redis at {server.name}", made
        if not options.matchmaker_file:
            raise ConfigurationError("matchmaker of [msgbus_zmq] is file: set matchmaker_file to its path")
        if options.listen and not (port.isdecimal() and int(port)):
            raise ConfigurationError(
                f"listen of [msgbus_zmq] is {options.listen}: with matchmaker = file it needs a fixed port, where "
                "other nodes find this one"
            )
        path = os.path.abspath(options.matchmaker_file)
        return f"by {path}", FileMatchmaker(self.loop, path, own, self._exchange, security.key_named)

    def _on_change(self) -> None:
        self._node.on_change()

    @property
    def state(self) -> str:
        if self._closed:
            return f"ZeroMQ {self._where}: closed"
        if self._node.error is not None:
            return " ".join(str(self._node.error).split())
        if not self._node.id:
            return f"ZeroMQ {self._where}: not used yet"
        return f"ZeroMQ {self._where}: {self._node.describe()}"

    def was_closed(self) -> CallCancelled:
        return CallCancelled(f"the ZeroMQ node {self._where} was closed")

    # The contract

    def send(self, address: Address, message: Message, *, mandatory: bool) -> Future[Sent]:
        limit = self._options.max_message_size
        if self._closed:
            return failed(self.was_closed())
        if address.kind not in _SENDABLE:
            return failed(_why_not(address))
        if len(message.body) > limit:
            text = (
                f"a message of {len(message.body)} bytes to {address}; the option max_message_size of [msgbus_zmq] is "
                f"{limit}"
            )
            return failed(MessageTooLarge(text))
        sent: Future[Sent] = LightFuture()
        self.loop.call_for(sent, self._node.send, Parcel(address, message, mandatory, sent))
        return sent

    def subscribe(self, addresses: Sequence[Address], on_delivery: OnDelivery, *, prefetch: int) -> Subscription:
        consumers: list[LocalConsumer] = []
        if any(address.kind == "dead" for address in addresses):
            ready = failed(CapabilityMissing("ZmqDriver does not store dead letters"))
        elif unreadable := [address for address in addresses if not _is_text(address)]:
            ready = failed(InvalidTarget("a name in it is not text", unreadable[0]))
        else:
            ready = self.ask(self._node.subscribe, tuple(addresses), on_delivery, prefetch, consumers)
        return _ZmqSubscription(self, consumers, ready)

    def open_inbox(self, on_delivery: OnDelivery) -> Inbox:
        inbox = _ZmqInbox(self)
        inbox.ready = self.ask(self._node.open_inbox, inbox, on_delivery)
        return inbox

    def inspect(self, address: Address) -> Future[QueueInfo]:
        return self.ask(self._node.inspect, address)

    def known_servers(self) -> Future[Sequence[Address]]:
        return self.ask(self._node.known_servers)

    def end(self, func: Callable[..., None], *args: Any) -> Future[None]:
        """End something of the node, as by `ask`; done at once if the node is closed or not started."""
        return done() if self._closed or not self.loop.started else self.ask(func, *args)

    def _disconnect(self, error: CallCancelled, deadline: float) -> None:
        self._wait(self._wait_for(deadline, self._node.unfinished) or (), deadline)
        until = self.loop.now() + self.close_timeout
        self._wait_for(until, self._node.leave, error)
        if not self.loop.is_here:
            self._node.wait_closed(until)

    def _abandon(self) -> Iterable[Future[Any]]:
        futures, inherited = self._node.abandon()
        _inherited.append(inherited)
        return futures


def _check_addresses(listen: str, advertise: str) -> None:
    """Check the options of these names.

    Raises:
        ConfigurationError: nobody would find this process there.
    """
    if listen.startswith("tcp://") and not _is_port(port := listen.rpartition(":")[2]):
        raise ConfigurationError(
            f"listen of [msgbus_zmq] is {listen}, and {port!r} is not a port: write a number up to 65535, or * for any "
            "free one"
        )
    match = re.fullmatch(r"(?:\[[0-9A-Fa-f:.%a-z]+\]|[^\s:/\[\]@]+)(?::([0-9]+))?", advertise)
    if advertise and (match is None or (match[1] and not (_is_port(match[1]) and int(match[1])))):
        raise ConfigurationError(
            f"advertise of [msgbus_zmq] is {advertise}: write HOST or HOST:PORT, without tcp://, and an IPv6 address "
            "in brackets"
        )


def _is_port(text: str) -> bool:
    """Whether it is a port, or an asterisk. libzmq takes more: with 95x1 it listens at 95, with 99999 at 34463."""
    return text == "*" or (text.isascii() and text.isdecimal() and len(text) <= 5 and int(text) < 65536)


def _is_text(address: Address) -> bool:
    """Whether other nodes can be told of an address."""
    try:
        "".join(address).encode()
    except (UnicodeError, TypeError):
        return False
    return True


def _why_not(address: Address) -> CapabilityMissing | InvalidTarget:
    """Why nothing can be sent to an address of this kind."""
    if address.kind == "pool":
        return InvalidTarget("a pool gets what is sent to its topic", address)
    return CapabilityMissing(f"ZmqDriver does not store messages for {address}")


_inherited: list[Any] = []
"""Kept and never used: in a forked child, releasing libzmq's sockets would close the parent's."""


class _ZmqSubscription(Subscription):
    def __init__(self, driver: ZmqDriver, consumers: list[LocalConsumer], ready: Future[None]) -> None:
        self._driver = driver
        self._consumers = consumers
        self.ready = ready

    def stop(self) -> Future[None]:
        return self._driver.end(self._driver._node.stop, self._consumers, False)

    def close(self) -> Future[None]:
        return self._driver.end(self._driver._node.stop, self._consumers, True)


class _ZmqInbox(Inbox):
    """Its address has the node's id in it, so it is known when the node is open."""

    def __init__(self, driver: ZmqDriver) -> None:
        self._driver = driver

    def close(self) -> Future[None]:
        return self._driver.end(self._driver._node.close_inbox, self)
