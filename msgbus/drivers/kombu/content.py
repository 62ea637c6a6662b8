"""What comes in: a message whose frames are gathered, and is decompressed."""

from __future__ import annotations

from msgbus.drivers.base import Message
from msgbus.drivers.kombu import frames
from msgbus.drivers.kombu.channel import Channel
from msgbus.drivers.kombu.compression import decompress


class Content:
    """A message whose frames are still coming in: that of a basic.deliver, or of a basic.return for a reason."""

    __slots__ = ("channel", "deliver", "header", "missing", "parts", "why_returned")

    def __init__(self, channel: Channel, deliver: frames.Deliver | None, why_returned: str) -> None:
        self.channel = channel
        self.deliver = deliver
        self.why_returned = why_returned
        self.header: frames.ContentHeader | None = None
        self.missing = 0
        self.parts: list[bytes] = []


def message_of(body: bytes, header: frames.ContentHeader, largest: int | None) -> Message:
    """A message that came in. One that cannot be decompressed is for its receiver to refuse, by its content type.

    Args:
        body: as it came.
        header: its header.
        largest: the most bytes that a compressed body may become; None: nobody compresses, and it is left as it came.
    """
    content_type = header.content_type
    if largest is not None and (compression := header.headers.get("compression")) is not None:
        try:
            body = decompress(body, compression, largest)
        except ValueError as exc:
            content_type = f"{content_type} ({exc})"
    return Message(body, content_type, header.message_id)
