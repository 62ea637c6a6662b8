"""Compressed bodies."""

from __future__ import annotations

from typing import Any

import kombu.compression
import pytest

from msgbus.drivers.kombu.compression import CONTENT_TYPES, compress, decompress

THEIRS: Any = kombu.compression


@pytest.mark.parametrize("content_type", sorted(set(CONTENT_TYPES.values())))
def test_kombu_and_this_side_read_each_other(content_type: str) -> None:
    """What one compresses the other decompresses."""
    body = b"text " * 1000
    assert THEIRS.decompress(compress(body, content_type), content_type) == body
    theirs, named = THEIRS.compress(body, content_type)
    assert named == content_type
    assert decompress(theirs, content_type, 5000) == body


@pytest.mark.parametrize("content_type", sorted(set(CONTENT_TYPES.values())))
def test_what_cannot_be_decompressed(content_type: str) -> None:
    """A damaged body, one that is cut off, and one that would fill the memory are errors that say which."""
    body = compress(b"text " * 1000, content_type)
    assert decompress(body, content_type, 5000) == b"text " * 1000
    with pytest.raises(ValueError, match="damaged"):
        decompress(b"not compressed", content_type, 5000)
    with pytest.raises(ValueError, match="cut off"):
        decompress(body[:-5], content_type, 5000)
    with pytest.raises(ValueError, match="would have more than 4999 bytes"):
        decompress(body, content_type, 4999)


@pytest.mark.parametrize("content_type", ["application/x-lzma", 7, None, {}])
def test_an_unknown_method(content_type: object) -> None:
    """A peer may name anything: the error says what is read."""
    with pytest.raises(ValueError, match=r"this side reads application/x-gzip, application/x-bz2"):
        decompress(b"body", content_type, 5000)
