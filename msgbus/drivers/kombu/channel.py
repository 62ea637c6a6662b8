"""What takes the frames of one AMQP channel, and what it uses of the connection that it is on."""

from __future__ import annotations

from typing import Any, Protocol

from msgbus.drivers.kombu import frames
from msgbus.drivers.toolkit.loop import Loop
from msgbus.drivers.toolkit.session import Line
from msgbus.exceptions import TransportUnavailable


class Wire(Protocol):
    """What channels use of their connection, which is a `KombuSession`.

    Attributes:
        loop: the transport's.
        line: the connections that this is one of.
        frame_max: the largest frame, in bytes.
    """

    loop: Loop
    line: Line
    frame_max: int

    @property
    def is_open(self) -> bool:
        """Whether the connection is there."""

    def name(self) -> str:
        """The RabbitMQ that it is a connection to."""

    def add(self, channel: Channel) -> None:
        """Give a channel its number. It opens the channel itself. On the loop's thread.

        Raises:
            TransportUnavailable: there are too many channels already.
        """

    def remove_channel(self, channel: Channel) -> None:
        """The channel is closed. On the loop's thread."""

    def write(self, data: bytes) -> None:
        """Write, now or together with what others write. Any thread."""

    def append(self, data: bytes) -> None:
        """Have `data` written by the next `flush`. The caller may hold a lock that orders it."""

    def flush(self) -> None:
        """Have what has gathered written: by the loop if it is awake, else by this thread."""

    def move(self, reason: str) -> None:
        """Give up a connection that lives but does not do what it should, for one to the next host.

        A node of a cluster that is cut off from the others keeps its connections, and can do nothing for them. Where
        there is only one host, nothing changes.
        """


class Channel:
    """Takes the frames of one AMQP channel. Its methods are called on the loop's thread."""

    number: int

    def on_method(self, ids: bytes, buffer: bytes, at: int, end: int) -> None:
        """A method frame: its ids, and its arguments in ``buffer[at:end]``."""

    def on_content(self, ids: bytes, method: Any, header: frames.ContentHeader, body: bytes) -> None:
        """A whole message: of basic.deliver (a `frames.Deliver`) or basic.return (its text)."""

    def on_batch_end(self) -> None:
        """All that could be read at once has been handed over."""

    def on_down(self, error: TransportUnavailable) -> None:
        """The connection is gone."""
