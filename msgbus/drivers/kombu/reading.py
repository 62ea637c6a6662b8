"""What comes in on one connection to RabbitMQ: cut into frames, and given to their channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgbus.drivers.base import Message
from msgbus.drivers.kombu import frames
from msgbus.drivers.kombu.channel import Channel
from msgbus.drivers.kombu.content import Content, message_of
from msgbus.foreign import get_logger

LOG = get_logger(__name__)

NOT_DELIVERED = "a message could not be delivered"
"""For the log: an error over one message must not cost the connection, and everything else on it."""


class Reader:
    """See the module's text. On the loop's thread."""

    def __init__(
        self,
        channels: Mapping[int, Channel],
        frame_max: int,
        decompressed_max: int | None,
        on_connection_method: Callable[[bytes, bytes, int, int], None],
    ) -> None:
        """Begin with nothing read.

        Args:
            channels: the present ones, by number. The connection adds and removes them.
            frame_max: the largest frame, in bytes.
            decompressed_max: see `KombuDriver`.
            on_connection_method: takes a method frame of the connection itself, as `Channel.on_method` does.
        """
        self._channels = channels
        self._frame_max = frame_max
        self._decompressed_max = decompressed_max
        self._on_connection_method = on_connection_method
        self._buffer = b""
        self._contents: dict[int, Content] = {}
        self._is_closed = False

    def close(self) -> None:
        """The connection is lost: handle nothing more of what was read."""
        self._is_closed = True

    def forget(self, number: int) -> None:
        """A channel is closed: a message of which a part has come in will not be completed."""
        self._contents.pop(number, None)

    def feed(self, data: bytes) -> None:
        """Handle what was read; a frame that is not complete waits for the rest.

        Raises:
            Exception: it is malformed, or could not be handled. Nothing after it was handled.
        """
        buffer = self._buffer + data if self._buffer else data
        at, available = 0, len(buffer)
        while available - at >= frames.OVERHEAD:
            kind, number, size = frames.frame_head(buffer, at)
            end = at + 7 + size
            if end >= available:
                if size > self._frame_max:
                    raise ValueError(f"a frame of {size} bytes")
                break
            if buffer[end] != frames.END:
                raise ValueError("no frame end")
            whole = None
            if kind == frames.METHOD and buffer[at + 7 : at + 13] == frames.DELIVERY:
                whole = frames.read_delivery(buffer, number, at, end)
            if whole is None:
                self._on_frame(kind, number, buffer, at + 7, end)
                at = end + 1
            else:
                tag, redelivered, body, content_type, message_id, at = whole
                channel = self._channels.get(number)
                if channel is not None:  # Otherwise it was under way when the channel was closed.
                    try:
                        message = Message(body, content_type, message_id)
                        channel.on_delivery(tag, redelivered, message, frames.NO_HEADERS)
                    except Exception:
                        LOG.exception(NOT_DELIVERED)
                        channel.on_unread(tag)
            if self._is_closed:
                return
        self._buffer = buffer[at:]

    def _on_frame(self, kind: int, number: int, buffer: bytes, at: int, end: int) -> None:
        if kind == frames.METHOD:
            ids = buffer[at : at + 4]
            if number == 0:
                self._on_connection_method(ids, buffer, at + 4, end)
                return
            channel = self._channels.get(number)
            if channel is None:
                return  # A frame that was under way when the channel was closed.
            if ids == frames.BASIC_DELIVER:
                self._contents[number] = Content(channel, frames.read_deliver(buffer, at + 4), "")
            elif ids == frames.BASIC_RETURN:
                code, text = frames.read_close(buffer, at + 4, end)
                self._contents[number] = Content(channel, None, f"{code} {text}")
            else:
                channel.on_method(ids, buffer, at + 4, end)
        elif kind in (frames.HEADER, frames.BODY):
            content = self._contents.get(number)
            if content is not None:
                self._on_content_frame(content, number, kind, buffer, at, end)
        elif kind != frames.HEARTBEAT:
            raise ValueError(f"a frame of type {kind}")

    def _on_content_frame(self, content: Content, number: int, kind: int, buffer: bytes, at: int, end: int) -> None:
        if kind == frames.HEADER:
            content.header = frames.read_content_header(buffer, at, end)
            content.missing = content.header.size
        else:
            content.parts.append(buffer[at:end])
            content.missing -= end - at
        if content.missing <= 0 and content.header is not None:
            del self._contents[number]
            header, deliver = content.header, content.deliver
            try:
                if deliver is None:
                    content.channel.on_returned(header.message_id, content.why_returned)
                else:
                    message = message_of(b"".join(content.parts), header, self._decompressed_max)
                    content.channel.on_delivery(deliver.tag, deliver.redelivered, message, header.headers)
            except Exception:
                LOG.exception(NOT_DELIVERED)
                if deliver is not None:
                    content.channel.on_unread(deliver.tag)
