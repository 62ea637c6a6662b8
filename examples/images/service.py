"""Draws pictures: ``msgbus serve service:Images --topic images``. Run as many as you need."""

import base64
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

Context = dict[str, Any]


class Images:
    def __init__(self) -> None:
        self._drawing = 0
        self._lock = threading.Lock()  # Methods run on threads, several at a time.

    def draw(self, ctxt: Context, width: int, height: int) -> Iterator[str]:
        """The rows of a picture from its top, each with a byte for a pixel, in base64.

        Each row is sent when it is drawn. Drawing waits for a caller that does not take them, and ends with one that
        goes away: then the generator is closed at its ``yield``.
        """
        with self._counted():
            for y in range(height):
                yield base64.b64encode(draw_row(y, width, height)).decode()

    def drawing(self, ctxt: Context) -> int:
        """How many pictures this server is drawing."""
        return self._drawing

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._lock:
            self._drawing += 1
        try:
            yield
        finally:  # also when the generator is closed
            with self._lock:
                self._drawing -= 1


def draw_row(y: int, width: int, height: int) -> bytes:
    """One row of the Mandelbrot set."""
    return bytes(brightness(complex(3 * x / width - 2.2, 2.4 * y / height - 1.2)) for x in range(width))


def brightness(c: complex) -> int:
    """How soon a point leaves it."""
    z = 0j
    for step in range(50):
        z = z * z + c
        if abs(z) > 2:
            return 5 * step
    return 255
