from __future__ import annotations

from typing import Any

import pytest

from msgbus import InvalidTarget, Target
from msgbus.target import MAX_NAME_BYTES

NAMES = ("exchange", "topic", "server")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "value", ["", "a\n", "\0", "a\x7f", "\ud800", "a\u2028b", "x" * (MAX_NAME_BYTES + 1), "é" * 41]
)
def test_refuses_names_that_no_message_system_carries(name: str, value: str) -> None:
    """Empty names, control characters, lone surrogates and more than 75 bytes are refused at once."""
    with pytest.raises(InvalidTarget, match=f"the {name} "):
        Target()(**{name: value})


@pytest.mark.parametrize("name", [*NAMES, "namespace"])
@pytest.mark.parametrize("value", [1, b"bytes", ["list"], True])
def test_refuses_names_that_are_not_strings(name: str, value: Any) -> None:
    """A name that is not a string is refused, and the text says what it was."""
    with pytest.raises(InvalidTarget, match=f"the {name} must be a string, not {type(value).__name__}"):
        Target(**{name: value})


def test_refuses_legacy_namespaces_that_are_one_string() -> None:
    """An endpoint would answer to each of its characters, and not to the name."""
    with pytest.raises(InvalidTarget, match="a list of names, not a string: old"):
        Target(topic="foo", legacy_namespaces="old")


@pytest.mark.parametrize("value", ["x" * MAX_NAME_BYTES, "é" * 37, "a/b!c%d.e f", "#", "*"])
def test_takes_any_printable_name_of_75_bytes(value: str) -> None:
    """What one of the message systems gives a meaning to is an ordinary character in a name."""
    assert Target(topic=value).topic == value


def test_call_returns_a_changed_copy() -> None:
    """Calling a target returns a copy with the given attributes changed, and leaves it as it was."""
    target = Target(topic="foo", server="h1", namespace="n", legacy_namespaces=("old",))
    copy = target(server=None, version="1.2")
    assert copy == Target(topic="foo", version="1.2", namespace="n", legacy_namespaces=("old",))
    assert target == Target(topic="foo", server="h1", namespace="n", legacy_namespaces=("old",))


def test_call_checks_what_it_changes() -> None:
    """A copy is checked like a new target, and an attribute that there is not is a TypeError."""
    target = Target(topic="foo")
    with pytest.raises(InvalidTarget):
        target(topic="")
    with pytest.raises(TypeError):
        target(tpoic="bar")


@pytest.mark.parametrize(
    ("target", "accepted"),
    [
        (Target(), [None]),
        (Target(namespace="n"), ["n"]),
        (Target(namespace="n", legacy_namespaces=["m", "l"]), ["n", "m", "l"]),
        (Target(legacy_namespaces=[]), [None]),
    ],
)
def test_accepted_namespaces(target: Target, accepted: list[str | None]) -> None:
    """An endpoint answers to its namespace and to its legacy ones."""
    assert target.accepted_namespaces == accepted


def test_equality_compares_all_attributes() -> None:
    """Targets are equal if all their attributes are; equal ones have equal hashes."""
    assert Target(topic="a", server="b") == Target(topic="a", server="b")
    assert hash(Target(topic="a", server="b")) == hash(Target(topic="a", server="b"))
    assert Target(topic="a") != Target(topic="a", fanout=True)
    assert Target(topic="a", legacy_namespaces=["x"]) != Target(topic="a")


def test_cannot_be_changed() -> None:
    """A target that somebody holds stays what it is."""
    with pytest.raises(AttributeError):
        Target(topic="a").topic = "b"  # type: ignore[misc]  # this is what must not work


def test_text_shows_what_is_given() -> None:
    """The text has the attributes that are set, and no others."""
    assert str(Target(topic="foo", fanout=True)) == "<Target topic=foo, fanout=True>"
