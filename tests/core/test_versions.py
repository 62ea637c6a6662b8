from __future__ import annotations

import pytest

from msgbus.versions import version_is_compatible


@pytest.mark.parametrize(
    ("implemented", "asked", "compatible"),
    [
        ("1.0", "1.0", True),
        ("1.5", "1.5", True),
        ("1.5", "1.4", True),
        ("1.5", "1.6", False),
        ("1.10", "1.9", True),
        ("1.9", "1.10", False),
        ("2.0", "1.0", False),
        ("1.0", "2.0", False),
        ("1.5.1", "1.5.2", False),
        ("1.5.2", "1.5.1", True),
        ("1.5.2", "1.5", True),
        ("1.5", "1.5.1", False),
        ("1.6", "1.5.9", True),
        ("1", "1.0", True),
    ],
)
def test_version_is_compatible(implemented: str, asked: str, compatible: bool) -> None:
    """The same major version, and a minor and revision that are no lower, serve a request."""
    assert version_is_compatible(implemented, asked) is compatible


@pytest.mark.parametrize("version", ["", "x", "1.x", "1.-1", "1.2.3.4", "1..2", "1.2.", "9" * 5000])
def test_an_invalid_version_is_a_value_error(version: str) -> None:
    """On either side; the text says what a version looks like, or how long it may be."""
    text = r"is not a version like 1\.2$" if len(version) < 64 else "has at most 64 characters"
    with pytest.raises(ValueError, match=text):
        version_is_compatible(version, "1.0")
    with pytest.raises(ValueError, match=text):
        version_is_compatible("1.0", version)
