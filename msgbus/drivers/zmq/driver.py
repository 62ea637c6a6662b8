"""The driver ``zmq``: no broker; the processes talk to each other directly, over ZeroMQ.

Each process is a node. Nodes find each other through a matchmaker: by default, those of one user on one host in a
directory; those of many hosts by a file, or in a Redis. For the messages that it sends itself a node plays the part of
the broker: see `msgbus.drivers.zmq.sender`.
What that means for guarantees: a message that was taken outlives the death of the server that has it, and not the
deaths of both that server and its sender; nothing is stored for servers that are not there.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any

from oslo_config import cfg

from msgbus.configuration import read_option
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
from msgbus.drivers.toolkit.futures import fail, fail_inherited
from msgbus.exceptions import (
    CallCancelled,
    CapabilityMissing,
    ConfigurationError,
    InvalidTarget,
    InvalidTransportURL,
    MessageTooLarge,
)
from msgbus.forking import call_in_child
from msgbus.options import read_driver_options
from msgbus.url import mask

if TYPE_CHECKING:
    from msgbus.drivers.toolkit.loop import Loop
    from msgbus.drivers.zmq.matchmakers.base import Matchmaker
    from msgbus.drivers.zmq.receiver import LocalConsumer
    from msgbus.drivers.zmq.security import Security
    from msgbus.url import TransportURL


_ANY_HOST = ("*", "0.0.0.0", "[::]", "::")  # noqa: S104  # to be refused

OPTIONS = [
    cfg.StrOpt(
        "run_dir",
        help="The directory in which the processes of this host find each other, and have their sockets. It may also "
        "stand as path in the URL: zmq:///path. Default: msgbus in $XDG_RUNTIME_DIR, else /tmp/msgbus-UID. Only its "
        "owner may write to it.",
    ),
    cfg.StrOpt(
        "matchmaker",
        default="local",
        choices=("local", "file", "redis"),
        help="How nodes find each other; local: the processes of one user on one host; file: the servers that "
        "matchmaker_file names; redis: all that use the Redis of redis_url.",
    ),
    cfg.StrOpt(
        "matchmaker_file",
        help='For matchmaker = file: a JSON file, {"TOPIC": {"SERVER": "HOST:PORT"}}; with keys, in place of '
        '"HOST:PORT", {"address": "HOST:PORT", "key": "NAME"} where NAME.key is in keys_dir. It is read anew when it '
        "changes.",
    ),
    cfg.StrOpt(
        "redis_url",
        secret=True,
        sample_default="redis://USER:PASSWORD@HOST:6379/0",
        help="For matchmaker = redis: where it is; rediss:// with TLS. Needs pip install 'msgbus[redis]'.",
    ),
    cfg.StrOpt(
        "listen",
        default="",
        help="An endpoint to listen at besides the Unix socket, for example tcp://10.0.0.5:9501; an asterisk for the "
        "port takes any. All but tcp://127.0.0.1 needs key_file and keys_dir. A server needs it where others are to "
        "find it by file or redis.",
    ),
    cfg.StrOpt(
        "advertise",
        default="",
        help="HOST or HOST:PORT by which other hosts reach what listen says, if it does not say so itself: it is an "
        "asterisk, or there is a translation of addresses on the way.",
    ),
    cfg.StrOpt(
        "key_file",
        help="The file with this node's secret key, made by msgbus zmq-keys; nobody else may read it. With it, all "
        "that does not go over the Unix socket is encrypted (CURVE).",
    ),
    cfg.StrOpt(
        "keys_dir",
        help="The directory with the public keys, NAME.key, of all who may connect to this node and to whom it "
        "connects. Its own need not be there. It is read anew when it changes.",
    ),
    cfg.BoolOpt(
        "insecure_let_anybody_send_and_read",
        default=False,
        help="Listen at, and connect to, other hosts without keys: whoever reaches the port can call all methods, and "
        "whoever is on the way can read and change all messages.",
    ),
    cfg.IntOpt(
        "max_message_size",
        default=16 * 1024 * 1024,
        min=1024,
        help="The largest message, in bytes, that is sent or taken.",
    ),
    cfg.IntOpt(
        "backlog",
        default=1000,
        min=1,
        help="How many messages wait at a server for each of its addresses, besides those that it has begun or holds "
        "by its prefetch. Further ones wait at their senders.",
    ),
    cfg.FloatOpt(
        "server_expires",
        default=1800.0,
        min=0.0,
        help="Seconds that a message without a time limit, whose server is gone, is kept for another one to come.",
    ),
    cfg.FloatOpt("connect_timeout", default=5.0, min=0.1, help="Seconds for one try to connect to a node."),
    cfg.FloatOpt(
        "heartbeat",
        default=5.0,
        min=0.0,
        help="Seconds; a node that was silent for twice that time is taken for lost. 0: none.",
    ),
]


class ZmqDriver(Driver):
    """See the module's text."""

    capabilities = frozenset({Capability.ORDERED, Capability.INSPECT, Capability.REQUEUE})

    @classmethod
    def options(cls) -> tuple[str, Sequence[cfg.Opt]]:
        return "msgbus_zmq", OPTIONS

    def __init__(self, conf: cfg.ConfigOpts, url: TransportURL, loop: Loop) -> None:
        import_library("zmq", "zmq")
        from msgbus.drivers.zmq.matchmakers import local as zmq_local

        self._options = options = read_driver_options(conf, *self.options(), url)
        if url.hosts:
            raise InvalidTransportURL(
                mask(url.unmasked()), "zmq has no hosts: write zmq:// alone, and see the option matchmaker"
            )
        path = f"/{url.virtual_host.lstrip('/')}" if url.virtual_host else None
        if path and "run_dir" in url.query:
            raise InvalidTransportURL(str(url), "it names a run directory twice, as path and as run_dir")
        self._run_dir = os.path.abspath(path or options.run_dir or zmq_local.default_run_dir())
        self._exchange: str = read_option(conf, "control_exchange")
        self._loop = loop
        self._closing = threading.Lock()
        self._closed = False
        self._start_clean()
        call_in_child(self._abandon)

    def _start_clean(self) -> None:
        from msgbus.drivers.zmq import link as zmq_link
        from msgbus.drivers.zmq import node as zmq_node
        from msgbus.drivers.zmq import security as zmq_security

        options = self._options
        self._inbox_numbers = 0
        self._futures: weakref.WeakSet[Future[Any]] = weakref.WeakSet()
        security = zmq_security.Security(
            options.key_file, options.keys_dir, options.insecure_let_anybody_send_and_read, options.listen
        )
        self._where, matchmaker = self._choose_matchmaker(security)
        self._node = zmq_node.Node(
            self._loop,
            matchmaker,
            zmq_link.LinkSettings(options.max_message_size, options.connect_timeout, options.heartbeat, security),
            listen=options.listen,
            advertise=options.advertise,
            backlog=options.backlog,
            server_expires=options.server_expires,
        )

    def _choose_matchmaker(self, security: Security) -> tuple[str, Matchmaker]:
        """Where nodes meet, in words, and what finds them there.

        Raises:
            ConfigurationError: an option is missing that it needs, or does not fit.
            DriverLoadFailure: a library is missing.
        """
        from msgbus.drivers.zmq import node as zmq_node
        from msgbus.drivers.zmq.matchmakers import file as zmq_file
        from msgbus.drivers.zmq.matchmakers import local as zmq_local
        from msgbus.drivers.zmq.matchmakers import redis as zmq_redis

        options = self._options
        if options.matchmaker == "local":
            return f"in {self._run_dir}", zmq_local.LocalMatchmaker(self._run_dir)
        own = zmq_node.as_told(options.listen, options.advertise).removeprefix("tcp://")
        host, _, port = own.rpartition(":")
        if options.listen and host in _ANY_HOST:
            raise ConfigurationError(
                f"listen of [msgbus_zmq] is {options.listen}, which does not say how other hosts reach this one: set "
                "advertise to its name or address"
            )
        if options.matchmaker == "redis":
            if not options.redis_url:
                raise ConfigurationError("matchmaker of [msgbus_zmq] is redis: set redis_url to where it is")
            server = zmq_redis.Server(options.redis_url)
            made = zmq_redis.RedisMatchmaker(self._loop, server, self._run_dir, self._on_news)
            return f"with Redis at {server.name}", made
        if not options.matchmaker_file:
            raise ConfigurationError("matchmaker of [msgbus_zmq] is file: set matchmaker_file to its path")
        if options.listen and not (port.isdecimal() and int(port)):
            raise ConfigurationError(
                f"listen of [msgbus_zmq] is {options.listen}: with matchmaker = file it needs a certain port, since "
                "others look for this one there"
            )
        path = os.path.abspath(options.matchmaker_file)
        return f"by {path}", zmq_file.FileMatchmaker(self._loop, path, own, self._exchange, security.key_named)

    def _on_news(self) -> None:
        self._node.on_news()

    @property
    def state(self) -> str:
        if self._closed:
            return f"ZeroMQ {self._where}: closed"
        if self._node.error is not None:
            return " ".join(str(self._node.error).split())
        if not self._node.id:
            return f"ZeroMQ {self._where}: not used yet"
        return f"ZeroMQ {self._where}: {self._node.describe()}"

    # The contract

    def send(self, address: Address, message: Message, *, mandatory: bool) -> Future[Sent]:
        from msgbus.drivers.zmq.queue import Parcel

        sent: Future[Sent] = Future()
        error = self._refusal(address, message)
        if error is not None:
            sent.set_exception(error)
            return sent
        self._loop.call_for(sent, self._node.send, Parcel(address, message, mandatory, sent))
        return sent

    def _refusal(self, address: Address, message: Message) -> Exception | None:
        """Why a message is not even tried to be sent."""
        if self._closed:
            return self._was_closed()
        if address.kind in ("stored", "dead"):
            return CapabilityMissing(f"ZmqDriver does not store messages for {address}")
        if address.kind == "pool":
            return InvalidTarget("a pool gets what is sent to its topic", address)
        size, limit = len(message.body), self._options.max_message_size
        if size > limit:
            return MessageTooLarge(
                f"a message of {size} bytes to {address}; the option max_message_size of [msgbus_zmq] is {limit}"
            )
        return None

    def _was_closed(self) -> CallCancelled:
        return CallCancelled(f"the ZeroMQ node {self._where} was closed")

    def _future(self) -> Future[Any]:
        future: Future[Any] = Future()
        if self._closed:
            future.set_exception(self._was_closed())
        else:
            self._futures.add(future)
        return future

    def subscribe(self, addresses: Sequence[Address], on_delivery: OnDelivery, *, prefetch: int) -> Subscription:
        consumers: list[LocalConsumer] = []
        ready = self._future()
        if any(address.kind == "dead" for address in addresses) and not ready.done():
            ready.set_exception(CapabilityMissing("ZmqDriver does not store dead letters"))
        if not ready.done():
            self._loop.call_for(ready, self._node.subscribe, tuple(addresses), on_delivery, prefetch, consumers, ready)
        return _ZmqSubscription(self, consumers, ready)

    def open_inbox(self, on_delivery: OnDelivery) -> Inbox:
        return _ZmqInbox(self, on_delivery)

    def inspect(self, address: Address) -> Future[Depth]:
        found = self._future()
        if not found.done():
            self._loop.call_for(found, self._node.inspect, address, found)
        return found

    def close(self) -> None:
        with self._closing:
            if self._closed:
                return
            self._closed = True
        if not self._loop.started:
            return
        done: Future[None] = Future()
        error = self._was_closed()
        if self._loop.is_here:
            self._node.leave(error, done)
            return
        unfinished: Future[list[Future[Any]]] = Future()
        self._loop.call_for(unfinished, self._node.unfinished, unfinished)
        wait([unfinished], self.close_timeout)
        if unfinished.done() and unfinished.exception() is None:
            wait(unfinished.result(), self.close_timeout)
        self._loop.call_for(done, self._node.leave, error, done)
        wait([done], self.close_timeout)
        self._cancel(error)

    def _cancel(self, error: Exception) -> None:
        for future in list(self._futures):
            fail(future, error)

    def _abandon(self) -> None:
        """In a forked child: the sockets are the parent's."""
        futures, inherited = self._node.abandon()
        futures += self._futures
        _inherited.append(inherited)
        self._closing = threading.Lock()
        self._start_clean()
        for future in futures:
            fail_inherited(future)


_inherited: list[Any] = []
"""What a forked child keeps and never uses: to let go of libzmq's sockets would be to close the parent's."""


class _ZmqSubscription(Subscription):
    def __init__(self, driver: ZmqDriver, consumers: list[LocalConsumer], ready: Future[None]) -> None:
        self._driver = driver
        self._consumers = consumers
        self.ready = ready

    def stop(self) -> Future[None]:
        return self._end(close=False)

    def close(self) -> Future[None]:
        return self._end(close=True)

    def _end(self, *, close: bool) -> Future[None]:
        done: Future[None] = Future()
        driver = self._driver
        if driver._closed or not driver._loop.started:
            done.set_result(None)
        else:
            driver._futures.add(done)
            driver._loop.call_for(done, driver._node.stop, self._consumers, close, done)
        return done


class _ZmqInbox(Inbox):
    def __init__(self, driver: ZmqDriver, on_delivery: OnDelivery) -> None:
        self._driver = driver
        self.ready = driver._future()
        if not self.ready.done():
            driver._loop.call_for(self.ready, driver._node.open_inbox, self._name, on_delivery, self.ready)

    def _name(self, node: str) -> Address:
        """Its address has the node's id in it, which is known when the node is open."""
        self._driver._inbox_numbers += 1
        self.address = Address("inbox", name=f"{node}.{self._driver._inbox_numbers}")
        return self.address

    def close(self) -> Future[None]:
        done: Future[None] = Future()
        driver = self._driver
        if driver._closed:
            done.set_result(None)
        else:
            driver._futures.add(done)
            driver._loop.call_for(done, self._close, done)
        return done

    def _close(self, done: Future[None]) -> None:
        """On the loop's thread, after it was opened there, or could not be."""
        self._driver._node.close_inbox(getattr(self, "address", None), done)
