"""Compressed bodies, as kombu writes and reads them: the header ``compression`` of a message names the method.

A stock oslo.messaging compresses what it sends if its option kombu_compression is set, and reads what is compressed.
"""

from __future__ import annotations

import bz2
import zlib
from collections.abc import Callable

CONTENT_TYPES = {"gzip": "application/x-gzip", "bz2": "application/x-bz2", "bzip2": "application/x-bz2"}
"""By the values of the option, what the header says. kombu itself knows bzip2 and not bz2, which oslo.messaging
documents."""

_COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "application/x-gzip": zlib.compress,  # kombu calls zlib's own format so.
    "application/x-bz2": bz2.compress,
}


def compress(body: bytes, content_type: str) -> bytes:
    """Compress a body; `content_type` is one of `CONTENT_TYPES`."""
    return _COMPRESS[content_type](body)


def decompress(body: bytes, content_type: object, largest: int) -> bytes:
    """Undo the compression that a message's header names. A small body may be made to fill any memory: hence `largest`.

    Raises:
        ValueError: an unknown method, a damaged body, or one that would have more bytes than `largest`. The text says
            which.
    """
    reader = _reader(content_type)
    try:
        found = reader.decompress(body, largest + 1)
    except (zlib.error, OSError) as exc:
        raise ValueError(f"it is compressed as {content_type}, and damaged: {exc}") from None
    if len(found) > largest:
        raise ValueError(f"it is compressed as {content_type}, and would have more than {largest} bytes")
    if not reader.eof:
        raise ValueError(f"it is compressed as {content_type}, and is cut off")
    return found


def _reader(content_type: object) -> zlib._Decompress | bz2.BZ2Decompressor:
    if content_type == "application/x-gzip":
        return zlib.decompressobj()
    if content_type == "application/x-bz2":
        return bz2.BZ2Decompressor()
    known = ", ".join(_COMPRESS)
    raise ValueError(f"it is compressed as {content_type!r}, and this side reads {known}")
