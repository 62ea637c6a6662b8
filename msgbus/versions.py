"""Versions of interfaces, which of them are compatible, and which one added a method."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import MemberDescriptorType
from typing import Any, TypeVar

from msgbus.message import MAX_VERSION
from msgbus.signatures import mark_of

F = TypeVar("F", bound=Callable[..., Any])
_SINCE = "_msgbus_since"


def since(version: str) -> Callable[[F], F]:
    """Decorate a method of an endpoint with the version of the interface that added it.

    ::

        class Images:
            target = msgbus.Target(version="1.2")

            def resize(self, ctxt, image): ...

            @msgbus.since("1.2")
            def paint(self, ctxt, image, colour): ...

    ``msgbus describe`` shows it. A method without it was there from the beginning: since 1.0 if the version of its
    endpoint is 1.2. It does not change who may call the method: a client that asks for version 1.0 may, too.

    Args:
        version: like ``"1.2"``, of the same major version as the endpoint's, and not above that. This is checked when
            the server is made, which is a TypeError if it does not hold.

    Raises:
        TypeError: it is not a string, as in ``@since`` without parentheses, or what it decorates is a class.
        ValueError: it is not of the form ``1.2`` or ``1.2.3``.
    """
    if not isinstance(version, str):
        raise TypeError(f"since takes the version that added the method: @since('1.2'), and not {version!r}")
    parse_version(version)

    def decorate(method: F) -> F:
        marked: Any = method.__func__ if isinstance(method, staticmethod | classmethod) else method
        if isinstance(marked, type):
            raise TypeError(f"since is for methods; the version of {marked.__qualname__} is in its target")
        setattr(marked, _SINCE, version)
        return method

    return decorate


def since_of(method: Any) -> str | None:
    """The version that `since` says of a method; None if it is not marked. None of its code runs."""
    found = mark_of(method, _SINCE)
    return found if isinstance(found, str) else None


def methods_since(endpoint: object) -> Iterator[tuple[str, str]]:
    """The names of an endpoint's marked methods, each with the version that added it. No property is evaluated."""
    for name in dir(endpoint):
        found = inspect.getattr_static(endpoint, name, None)
        if isinstance(found, MemberDescriptorType):  # made by __slots__: reading it runs no code
            found = getattr(endpoint, name, None)
        added = since_of(found)
        if added is not None:
            yield name, added


def check_since(method: str, added: str, version: str) -> None:
    """Check that the version that added a method is one that its endpoint has had.

    Raises:
        TypeError: it has another major version, or is above the endpoint's.
    """
    if not version_is_compatible(version, added):
        raise TypeError(
            f"{method} is marked with since({added!r}), but the version of its endpoint is {version}: since has to "
            "name the same major version, and no higher minor version"
        )


def first_version(version: str) -> str:
    """The first version with the same major: 1.0 for 1.2."""
    return f"{parse_version(version)[0]}.0"


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
        raise ValueError(f"a version has at most {MAX_VERSION} characters, and {text[:40]!r}… has {len(text)}")
    try:
        parts = [int(part) for part in text.split(".")]
    except ValueError:
        parts = []
    if not 1 <= len(parts) <= 3 or min(parts) < 0:
        raise ValueError(f"{text!r} is not a version like 1.2")
    major, minor, revision = (*parts, 0, 0)[:3]
    return major, minor, revision
