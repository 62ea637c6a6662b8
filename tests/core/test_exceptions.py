from __future__ import annotations

import copy
import pickle
import re

import pytest

from msgbus import exceptions
from msgbus.exceptions import MessagingException, RemoteError

ALL = sorted(
    (
        cls
        for cls in vars(exceptions).values()
        if isinstance(cls, type) and issubclass(cls, Exception) and cls.__module__ == exceptions.__name__
    ),
    key=lambda cls: cls.__name__,
)

EXAMPLES: dict[type[Exception], tuple[object, ...]] = {
    exceptions.InvalidTarget: ("no topic", "target"),
    exceptions.InvalidTransportURL: ("x://", "no scheme"),
    exceptions.DriverLoadFailure: ("driver", "reason"),
    exceptions.RemoteError: ("Class", "value"),
    exceptions.NoSuchMethod: ("method",),
    exceptions.UnsupportedVersion: ("1.5", "method"),
    exceptions.RPCVersionCapError: ("1.5", "1.4"),
    exceptions.CastsFailed: ({3: exceptions.MessageUndeliverable("nobody")}, 5),
}


def example(cls: type[Exception]) -> Exception:
    """An error of the class."""
    return cls(*EXAMPLES.get(cls, ("the text",)))


def tree() -> dict[str, tuple[str | None, str | None]]:
    """From the module's docstring: class name -> parent's name, name of the built-in base."""
    found: dict[str, tuple[str | None, str | None]] = {}
    above: list[str] = []
    for line in (exceptions.__doc__ or "").splitlines():
        match = re.fullmatch(r"    ((?:[│├└─ ])*)([A-Z]\w+)(?: \((\w+)\))?(?: .*)?", line)
        if match:
            depth = len(match[1]) // 4
            del above[depth:]
            found[match[2]] = (above[-1] if above else None, match[3])
            above.append(match[2])
    return found


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_every_class_is_drawn_in_the_tree(cls: type[Exception]) -> None:
    """The docstring's tree shows every class, under its base, with the built-in class that it also is."""
    parent, builtin = tree()[cls.__name__]
    bases = [base.__name__ for base in cls.__bases__]
    assert bases == ["Exception"] if parent is None else [parent, *([builtin] if builtin else [])]


def test_the_tree_shows_nothing_else() -> None:
    """No class is drawn that there is not, and all of them descend from one."""
    assert set(tree()) == {cls.__name__ for cls in ALL}
    assert all(issubclass(cls, MessagingException) for cls in ALL)


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("how", ["copy", "deepcopy", *range(2, pickle.HIGHEST_PROTOCOL + 1)])
def test_errors_can_be_copied_and_pickled(cls: type[Exception], how: str | int) -> None:
    """A copied or pickled error keeps its class, its text and its attributes."""
    error = example(cls)
    again = getattr(copy, how)(error) if isinstance(how, str) else pickle.loads(pickle.dumps(error, how))  # noqa: S301 - our own
    assert type(again) is cls
    assert str(again) == str(error)
    assert repr(vars(again)) == repr(vars(error))  # One of them holds other errors, which are equal to none.


@pytest.mark.parametrize("cls", [exceptions.TransportUnavailable, exceptions.TransportBlocked])
@pytest.mark.parametrize("maybe_delivered", [True, False])
def test_maybe_delivered_is_kept(
    cls: type[exceptions.TransportUnavailable] | type[exceptions.TransportBlocked], maybe_delivered: bool
) -> None:
    """Whether the message may have arrived survives copying and pickling."""
    error = cls("text", maybe_delivered=maybe_delivered)
    for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):  # noqa: S301 - our own
        assert again.maybe_delivered is maybe_delivered
        assert str(again) == "text"
    assert cls("text").maybe_delivered is False


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_texts_say_all_that_was_given(cls: type[Exception]) -> None:
    """Every argument of an error shows up in its text."""
    text = str(example(cls))
    for argument in EXAMPLES.get(cls, ("the text",)):
        parts = [*argument, *argument.values()] if isinstance(argument, dict) else argument
        for part in parts if isinstance(parts, list) else [argument]:
            assert str(part).strip() in text


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (exceptions.UnsupportedVersion("1.5"), "Endpoint does not support RPC version 1.5"),
        (exceptions.UnsupportedVersion("1.5", "m", None, ["1.0", "2.1"]), "(it has 1.0, 2.1). Attempted method: m"),
        (
            exceptions.UnsupportedVersion("1.0", "m", "admin"),
            "No endpoint has the namespace 'admin'. Attempted method: m",
        ),
        (exceptions.NoSuchMethod("gett"), "Endpoint does not support RPC method gett"),
        (exceptions.NoSuchMethod("gett", "get"), "gett; did you mean 'get'?"),
        (RemoteError("Class", "value", ["a\n", "b\n"]), "Remote error: Class: value"),
    ],
)
def test_texts_of_what_may_be_left_out(error: Exception, text: str) -> None:
    """What is not given is left out of a text."""
    assert str(error).endswith(text)
