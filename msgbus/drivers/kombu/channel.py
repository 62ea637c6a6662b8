"""`Channel`, which handles the frames of one AMQP channel."""

from __future__ import annotations

from typing import Any

from msgbus.drivers.kombu import frames
from msgbus.exceptions import TransportUnavailable


class Channel:
    """Handles the frames of one AMQP channel. Its methods are called on the loop's thread."""

    number: int

    def on_method(self, ids: bytes, buffer: bytes, at: int, end: int) -> None:
        """A method frame: its ids, and its arguments in ``buffer[at:end]``."""

    def on_content(self, ids: bytes, method: Any, header: frames.ContentHeader, body: bytes) -> None:
        """A whole message: of basic.deliver (a `frames.Deliver`) or basic.return (its text)."""

    def on_batch_end(self) -> None:
        """All frames of one read have been passed on."""

    def on_down(self, error: TransportUnavailable) -> None:
        """The connection is lost."""
