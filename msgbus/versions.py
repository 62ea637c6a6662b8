"""Versions of interfaces, and which of them are compatible."""

from __future__ import annotations

from msgbus.message import MAX_VERSION


def version_is_compatible(implemented: str, asked: str) -> bool:
    """Whether an interface of version `implemented` serves a request for `asked`: same major, and no lower minor.

    A third component counts where the minor versions are equal.

    Raises:
        ValueError: one of them is not of the form ``1.2`` or ``1.2.3``.
    """
    have, want = parse_version(implemented), parse_version(asked)
    return have[0] == want[0] and have[1:] >= want[1:]


def is_version(value: object) -> bool:
    """Whether it is a string of the form ``1.2`` or ``1.2.3``."""
    try:
        return isinstance(value, str) and bool(parse_version(value))
    except ValueError:
        return False


def parse_version(text: str) -> tuple[int, int, int]:
    """The major, the minor and a third component of a version.

    Raises:
        ValueError: it is not of the form ``1.2`` or ``1.2.3``.
    """
    if not isinstance(text, str):
        raise ValueError(f"a version is a string like '1.2', not {text!r}")
    if len(text) > MAX_VERSION:
        raise ValueError(f"a version has {MAX_VERSION} characters at the most, and {text[:40]!r}… has {len(text)}")
    parts = [int(part) for part in text.split(".")]
    if not 1 <= len(parts) <= 3 or min(parts) < 0:
        raise ValueError(f"{text!r} is not a version like 1.2")
    major, minor, revision = (*parts, 0, 0)[:3]
    return major, minor, revision
