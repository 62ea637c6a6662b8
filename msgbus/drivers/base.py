"""The driver contract, version 2.0: what a driver of msgbus is and what it promises.

A driver moves bytes between addresses, and nothing else. Requests and replies, deadlines, repeats, remote errors,
streams and dead letters live in the core: a reply is an ordinary `Driver.send` to an ordinary address. To write a
driver of a broker, subclass `msgbus.drivers.toolkit.broker.BrokerDriver`, which fulfils most of this contract; for a
message system without a broker, subclass `Driver`, `Subscription`, `Inbox` and `Delivery`. Name the class in the entry
point group ``msgbus.drivers``.

`PUBLIC` lists the names that drivers may use. They change only with the version of this contract. If a driver needs any
other name, something is missing here: please open an issue.

Rules that hold for all of it:

* **Threads.** Every method may be called from any thread, and also from within a callback of the driver. None blocks on
  I/O. `on_delivery` must not block either: it may be called on the one thread that does all I/O, and a driver without
  one may call it on the thread that is in `send`. So neither it nor a future's callback may wait or run a user's
  handler, and a driver holds no lock while it calls them. Calls for one subscription or inbox never overlap.
* **Errors.** A driver raises, and sets on its futures, errors of `msgbus.exceptions` only. Those of its library are
  mapped at one place, and say which host, port, user and name were tried, why it failed and what to check; never a
  password. In its log (`msgbus.foreign.get_logger`) foreign text is escaped.
* **Connections** open when first needed, come back by themselves with a jittered back-off, and are shared. After a
  reconnect inboxes are restored first, then subscriptions; then the waiting messages are sent.
* **No repeats.** A driver never sends a message twice by itself: the core does, where the caller's policy allows it. A
  message does not count as sent if the message system refused it for the moment and is *known* not to have taken any
  part of it: the driver keeps it like one that waits for a connection, and offers it again for
  `Message.publish_within`, whatever the policy. (Later messages may overtake it.) If a part may have been taken, by one
  of several queues or by a node that failed, the send fails at once with ``maybe_delivered=True``.
* **Closed.** Every verb of a closed driver fails with `CallCancelled`, all of them with the same text, which says what
  was closed: `Driver.send` and `Driver.inspect` by their future, `Driver.subscribe` and `Driver.open_inbox` by
  ``ready``. Subscriptions and inboxes, also those that are opened now, are closed: their ``stop`` and ``close`` are
  done at once.
* **Fork.** A child process starts clean: it shares no connection with its parent, and inherited futures that are not
  done fail with `CallCancelled`, in the child alone. (Use `msgbus.forking.call_in_child`.)
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from enum import StrEnum
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, NoReturn

import msgspec

from msgbus.drivers.toolkit.loop import Loop
from msgbus.exceptions import CapabilityMissing, DriverLoadFailure

if TYPE_CHECKING:
    from oslo_config import cfg

    from msgbus.url import TransportURL

CONTRACT = (2, 0)

PUBLIC: dict[str, tuple[str, ...]] = {
    "msgbus.drivers.base": (
        "CONTRACT",
        "Address",
        "Capability",
        "Delivery",
        "QueueInfo",
        "Driver",
        "Inbox",
        "Kind",
        "Message",
        "OnDelivery",
        "Sent",
        "Subscription",
        "import_library",
        "raise_missing",
    ),
    # A driver raises those errors that the docstrings of this module name.
    "msgbus.exceptions": (
        "CallCancelled",
        "CapabilityMissing",
        "ConfigurationError",
        "DriverLoadFailure",
        "InvalidTarget",
        "InvalidTransportURL",
        "MessageDeliveryFailure",
        "MessageTooLarge",
        "MessageUndeliverable",
        "MessagingException",
        "TransportBlocked",
        "TransportUnavailable",
    ),
    "msgbus.foreign": ("get_logger",),
    "msgbus.forking": ("call_in_child",),
    "msgbus.options": ("connection_opts", "hosts_of", "is_given", "read_driver_options", "read_foreign_group"),
    "msgbus.url": ("TransportHost", "TransportURL"),
    # `msgbus.drivers.toolkit` says when to use which.
    "msgbus.drivers.toolkit.aio": ("DriverEventLoop", "event_loop_of"),
    "msgbus.drivers.toolkit.broker": ("BrokerDriver",),
    "msgbus.drivers.toolkit.connecting": ("Connector", "Dialler", "peer_of"),
    "msgbus.drivers.toolkit.consuming": ("Feed", "Outcome", "Source"),
    "msgbus.drivers.toolkit.descriptors": ("HINT", "is_shortage", "shortage"),
    "msgbus.drivers.toolkit.futures": ("done", "fail", "fail_inherited", "failed", "finish"),
    "msgbus.drivers.toolkit.loop": ("FOREVER", "LINGER", "Loop"),
    "msgbus.drivers.toolkit.sending": ("Offer", "OnDeclared", "Outgoing", "Sender"),
    "msgbus.drivers.toolkit.session": ("Line", "Session"),
    "msgbus.drivers.toolkit.tls": ("check_tls_files",),
    # for its tests
    "msgbus.conformance": ("Harness",),
    "msgbus.conformance.suite": ("Conformance",),
    "msgbus.conformance.waiting": ("until",),
}
"""Module -> the names in it that a driver may use."""


class Capability(StrEnum):
    """What a message system may or may not be able to promise. A driver declares those that it keeps."""

    STORAGE = "storage"
    """It keeps messages for listeners that are away."""
    DURABLE = "durable"
    """Messages that are marked durable outlive a restart of the message system."""
    INBOX_STORAGE = "inbox_storage"
    """Messages that reach an inbox while its owner reconnects are kept."""
    ORDERED = "ordered"
    """One sender's messages to one consumer keep their order."""
    EXPIRES = "expires"
    """The message system drops messages whose ttl has run out."""
    ATTEMPT_COUNT = "attempt_count"
    """`Delivery.attempts` is known."""
    INSPECT = "inspect"
    """`Driver.inspect` works."""
    REQUEUE = "requeue"
    """``Delivery.reject(requeue=True)`` gives the message to another consumer."""


Kind = Literal["topic", "server", "fanout", "pool", "inbox", "stored", "dead"]


class Address(NamedTuple):
    """Where a message goes to or comes from. The core makes addresses; a driver maps them to names of its own.

    ========  =======================  =========================================================
    kind      fields in use            a message goes to
    ========  =======================  =========================================================
    topic     exchange, topic          exactly one of the topic's subscribers, and to one of each pool
    server    exchange, topic, server  the subscriber that has this name
    fanout    exchange, topic          every subscriber (with `server` when subscribing)
    pool      exchange, topic, name    (subscribing only) the pool's copy of what is sent to the topic
    inbox     name                     the inbox of that name; only `Driver.open_inbox` makes it
    stored    exchange, topic          (sending only, with `Capability.STORAGE`) the topic, even without subscribers:
                                       it is created, and keeps the message
    dead      exchange, topic          storage for messages that could not be processed
    ========  =======================  =========================================================
    """

    kind: Kind
    exchange: str = ""
    topic: str = ""
    server: str = ""
    name: str = ""

    def __str__(self) -> str:
        if self.kind == "inbox":
            return f"inbox {self.name!r}"
        extra = {"server": f", server {self.server!r}", "pool": f", pool {self.name!r}"}.get(self.kind, "")
        kind = {"fanout": "all servers of ", "dead": "dead letters of "}.get(self.kind, "")
        return f"{kind}topic {self.topic!r}{extra} (exchange {self.exchange!r})"


class Message(msgspec.Struct, frozen=True):
    """A message.

    Attributes:
        body: the bytes; a driver does not look into them.
        content_type: of the body. It travels with the message.
        id: unique for each request or reply; the same when the core repeats one.
        ttl: seconds left until it is worthless, or None. Of a message that was received: what is left, where the
            message system knows, else None.
        durable: whether it has to outlive a restart of the message system (if `Capability.DURABLE` is declared).
        send_timeout: seconds in which it has to be published, if that differs from `ttl`: the sender of a cast waits
            for a minute, but the cast may be run later. None means the ttl. Of a received message: None.
    """

    body: bytes
    content_type: str
    id: str
    ttl: float | None = None
    durable: bool = False
    send_timeout: float | None = None

    @property
    def publish_within(self) -> float | None:
        """Seconds in which it has to be published, or None for as long as it takes."""
        return self.ttl if self.send_timeout is None else self.send_timeout


class Sent(msgspec.Struct, frozen=True):
    """The message system has taken responsibility for a message.

    Attributes:
        reached: how many subscribers got it, or None if the message system does not say.
    """

    reached: int | None = None


class QueueInfo(msgspec.Struct, frozen=True):
    """What is known of an address.

    Attributes:
        consumers: how many subscribers it has.
        messages: how many messages wait there, or None where the message system does not say.
    """

    consumers: int
    messages: int | None


class Delivery(ABC):
    """A message that was delivered to a subscriber, who calls `accept` or `reject`, on any thread.

    Only the first of these calls counts: later calls of either change nothing.

    Attributes:
        address: the subscribed address that it came by.
        message: the message.
        redelivered: it may have been delivered before, to this or another subscriber.
        attempts: how often it was delivered before, or None if the message system does not count.
        arrived: when it was delivered, in seconds of `Loop.now`.
    """

    __slots__ = ("address", "arrived", "attempts", "message", "redelivered")

    def __init__(self, address: Address, message: Message, redelivered: bool, attempts: int | None) -> None:
        self.address = address
        self.message = message
        self.redelivered = redelivered
        self.attempts = attempts
        self.arrived = Loop.now()

    @abstractmethod
    def accept(self) -> bool:
        """Acknowledge the message.

        Returns:
            False if the connection that it came by is known to be lost, so that the message system will deliver it
            again. True means that the acknowledgement is on its way over a connection that seems to work. Message
            systems do not confirm it, so the message may still come again; then `redelivered` is set. If it is called
            again, or after `reject`, it returns whether the connection worked at the first of these calls.
        """

    @abstractmethod
    def reject(self, requeue: bool) -> None:
        """Give the message back, to be delivered to another consumer (`requeue`), or drop it.

        Raises:
            CapabilityMissing: `requeue` without `Capability.REQUEUE`.
        """


OnDelivery = Callable[[Delivery], None]


class Subscription(ABC):
    """Consumes from one or more addresses until it is closed.

    Attributes:
        ready: done when every address is being consumed from for the first time. Fails with our errors if the message
            system refuses permanently (rights, a queue that was declared differently), and with `CallCancelled` if it
            is closed before.
    """

    ready: Future[None]

    @abstractmethod
    def stop(self) -> Future[None]:
        """Stop new deliveries. Messages that were delivered can still be accepted or rejected.

        Returns:
            a future that is done when no further delivery will come.
        """

    @abstractmethod
    def close(self) -> Future[None]:
        """Stop, and give back the messages that were delivered and neither accepted nor rejected. Idempotent.

        Returns:
            a future that is done when the message system has confirmed it, or the connection is lost.
        """


class Inbox(ABC):
    """A private address of this process, for replies. Messages that are delivered from it count as accepted.

    Attributes:
        address: stays the same over reconnects; its ``name``, of at most 255 characters, travels in every request.
        ready: done when messages to it will arrive; fails like `Subscription.ready`.
    """

    address: Address
    ready: Future[None]

    @abstractmethod
    def close(self) -> Future[None]:
        """Remove the inbox. Idempotent. The future is like that of `Subscription.close`."""


class Driver(ABC):
    """A message system. One instance for each `Transport`.

    Attributes:
        contract: the version of this contract that the driver was written for. Another major version is refused.
        capabilities: what it declares. Read by the core and by the conformance suite.
        close_timeout: seconds that `close` may take. The core sets less when the program ends without a clean-up.
        one_process: its messages do not leave the process: commands that start servers have them in their own.
        reads_of_others: settings of another library that it reads: by group, the names. No warning in the log says that
            these have no effect.
    """

    contract: ClassVar[tuple[int, int]] = CONTRACT
    capabilities: frozenset[Capability] = frozenset()
    close_timeout: float = 5.0
    one_process: ClassVar[bool] = False
    reads_of_others: Mapping[str, frozenset[str]] = MappingProxyType({})

    @classmethod
    def options(cls) -> tuple[str, Sequence[cfg.Opt]]:
        """The name of the driver's own oslo.config group, and the options in it.

        They are registered on the configuration object before the driver is made, and each can be set in the query of
        the transport URL.
        """
        raise NotImplementedError

    @abstractmethod
    def __init__(self, conf: cfg.ConfigOpts, url: TransportURL, loop: Loop) -> None:
        """Keep what is needed to connect. No I/O, no thread.

        `loop` is the transport's: all reading, writing, waiting and timers of the driver go through it. The core closes
        it after the driver. In a forked child it starts clean before any code of the driver is called.

        Raises:
            InvalidTransportURL: the URL lacks something that this driver needs, or has something that it cannot use.
            ConfigurationError: an option's value is wrong.
            DriverLoadFailure: a library is missing.
        """

    @abstractmethod
    def send(self, address: Address, message: Message, *, mandatory: bool) -> Future[Sent]:
        """Hand a message to the message system.

        While there is no connection, messages wait for it, for `Message.publish_within`. The future is done when the
        message system has taken responsibility for the message. It fails with

        * `MessageUndeliverable`: `mandatory`, and nobody subscribes to the address nor is anything stored for it. For a
          fanout to nobody, `mandatory` is False.
        * `TransportUnavailable`: its time ended while the message waited (``maybe_delivered=False``); or the connection
          broke while it was being sent (``maybe_delivered=True``, at once); or it was sent and the message system did
          not answer before its time ended (``maybe_delivered=True``, at that moment, however short the time is: the
          sender waits no longer). A message is being sent from the first byte that may have been passed to the library
          or the socket. So it waits in the driver's own queue, never in that of a library, which could not give it
          back.
        * `TransportBlocked`: the message system takes no messages, or none for this address (an alarm, a full queue),
          at once or until its time ended. Under at_least_once the core sends the message again until its deadline.
        * `MessageTooLarge`: before a byte is sent.
        * `InvalidTarget`: the address cannot be named on this message system.
        * `CapabilityMissing`: an address of the kind stored, without `Capability.STORAGE`.
        * `CallCancelled`: the driver was closed, or the process is a forked child, and it was sent before the fork.
        """

    @abstractmethod
    def subscribe(self, addresses: Sequence[Address], on_delivery: OnDelivery, *, prefetch: int) -> Subscription:
        """Consume from addresses of the kinds topic, server, fanout, pool and dead. Returns at once.

        `prefetch` (1 or more) bounds, for each address, the deliveries that are neither accepted nor rejected.

        Raises:
            InvalidTarget: an address cannot be named on this message system.
            CapabilityMissing: an address of the kind dead, without `Capability.STORAGE`. (Both may as well be what
                `Subscription.ready` fails with.)
        """

    @abstractmethod
    def open_inbox(self, on_delivery: OnDelivery) -> Inbox:
        """Create a private address of this process. Returns at once."""

    def inspect(self, address: Address) -> Future[QueueInfo]:
        """Inspect an address of the kinds topic, server, pool and dead.

        The future fails with `MessageUndeliverable` if the address does not exist; with `TransportUnavailable` if it
        cannot be inspected (within a second if there is no connection); and with `CallCancelled` if the driver was
        closed.

        Raises:
            CapabilityMissing: without `Capability.INSPECT`.
        """
        raise_missing(self, Capability.INSPECT)

    def known_servers(self) -> Future[Sequence[Address]] | None:
        """Which servers there are: an address of the kind server for each that subscribes now, on every exchange.

        For operators who look around; nothing else relies on it. The future fails as that of `inspect`.

        Returns:
            None, the default, if the message system cannot list them.
        """
        return None

    @property
    def up_since(self) -> float | None:
        """Since when messages can be sent and received, in seconds of `Loop.now`; None while they cannot.

        A peer's silence is counted from then on: while this side is disconnected, silence says nothing about the peer.
        For a message system without connections it is 0, the default.
        """
        return 0.0

    @property
    def state(self) -> str:
        """Where it is connected to, or why it is not, in one line for an operator. Never a password."""
        return type(self).__name__

    @abstractmethod
    def close(self) -> None:
        """Close connections, inboxes and subscriptions. Idempotent.

        Messages that were passed to `send` before get up to `close_timeout` for the message system's confirmation;
        those that are unfinished then fail with `CallCancelled`. This is the one method that may block. It is also
        called when a transport was dropped, and at the end of the program, when no thread can be started any more.
        """


def import_library(module: str, extra: str) -> ModuleType:
    """Import the library of one of msgbus's own drivers when it is first used; `extra` is the extra that installs it.

    (A driver in its own distribution depends on its library, and just imports it.)

    Raises:
        DriverLoadFailure: it is missing; the text says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as exc:
        raise DriverLoadFailure(extra, f"{exc}; install it with: pip install 'msgbus[{extra}]'") from exc


def raise_missing(driver: Driver, capability: Capability) -> NoReturn:
    """Raise `CapabilityMissing` with the text that all drivers use."""
    raise CapabilityMissing(f"{type(driver).__name__} does not declare the capability {capability.value!r}")
