"""`Channel`, which handles the frames of one AMQP channel; `Wire`, what it uses of its connection; and `Settling`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from msgbus.drivers.base import Message
from msgbus.drivers.kombu.frames import Headers
from msgbus.drivers.toolkit.loop import Loop
from msgbus.drivers.toolkit.session import Line
from msgbus.exceptions import TransportUnavailable


class Settling(Protocol):
    """What settles deliveries: a consumer's channel."""

    def take_settlements(self) -> bytes:
        """The frames for what was settled since the last time, once. Any thread; empty where the channel is closed."""


class Wire(Protocol):
    """What channels use of their connection, which is a `KombuSession`.

    Attributes:
        loop: the transport's.
        line: the driver's line that this is a session of.
        frame_max: the largest frame, in bytes.
        hindered_at: when RabbitMQ was last known to be kept from answering: the network was still taking what had
            waited for it for a second, or RabbitMQ took no messages, and read nothing. In seconds of `Loop.now`.
    """

    loop: Loop
    line: Line
    frame_max: int
    hindered_at: float

    @property
    def is_open(self) -> bool:
        """Whether the connection is open."""

    def name(self) -> str:
        """The RabbitMQ at the other end."""

    def add(self, channel: Channel) -> None:
        """Give a lasting channel its number; the caller opens it. On the loop's thread.

        Raises:
            TransportUnavailable: there are too many already.
        """

    def add_soon(self, channel: Channel, begin: Callable[[], None]) -> None:
        """Give the channel of a question its number, and call `begin`, which opens it. On the loop's thread.

        If too many questions are open, that is done when another one has ended.
        """

    def remove_channel(self, channel: Channel) -> None:
        """The channel is closed, or need not be opened any more. On the loop's thread."""

    def write(self, data: bytes) -> None:
        """Write, now or together with other data. Any thread."""

    def append(self, data: bytes) -> None:
        """Have `data` written by the next `flush`. The caller may hold a lock that orders it."""

    def settle_soon(self, settling: Settling, *, is_urgent: bool) -> None:
        """Have what `settling` has settled written by the next `flush`, before all else that is to be written then.

        If it is not urgent, it may wait a moment for more. Any thread.
        """

    def acknowledge_later(self, channel: int, tag: int) -> None:
        """Acknowledge all up to `tag` with the next write, or within a second. On the loop's thread."""

    def acknowledge_no_more(self, channel: int) -> None:
        """The channel is being closed: drop what `acknowledge_later` has left. Any thread."""

    def flush(self) -> None:
        """Write what has gathered: by the loop if it is awake, else on this thread."""

    def move(self, reason: str, *, pause: float = 0.0) -> None:
        """Give up a connection that is open but does not work, for one to the next host.

        A node that is cut off from its cluster keeps its connections, but cannot serve them. With only one host this
        does nothing; nor does it within `pause` seconds of the last time that it did something.
        """


class Channel:
    """Handles the frames of one AMQP channel. Its methods are called on the loop's thread."""

    number: int = 0

    def on_method(self, ids: bytes, buffer: bytes, at: int, end: int) -> None:
        """A method frame: its ids, and its arguments in ``buffer[at:end]``."""

    def on_delivery(self, tag: int, redelivered: bool, message: Message, headers: Headers) -> None:
        """A message was delivered; `headers` are those of them that matter, if there are any."""

    def on_unread(self, tag: int) -> None:
        """A message was delivered, and could not be read: `on_delivery` was not called, or has raised."""

    def on_returned(self, message_id: str, why: str) -> None:
        """A message that was published has come back: nobody is there to take it."""

    def on_down(self, error: TransportUnavailable) -> None:
        """The connection is lost."""
