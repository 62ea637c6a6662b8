"""What mutants are made with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Mutant(NamedTuple):
    """A fault, and the checks that notice it."""

    apply: Callable[[], None]
    caught_by: frozenset[str]


Mutants = dict[str, Mutant]


def collector(mutants: Mutants) -> Callable[..., Callable[[Callable[[], None]], Callable[[], None]]]:
    """Make a decorator that adds a mutant to `mutants`; its arguments are the checks that fail, these and no other."""

    def caught_by(*checks: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
        def note(func: Callable[[], None]) -> Callable[[], None]:
            mutants[func.__name__] = Mutant(func, frozenset(f"test_{check}" for check in checks))
            return func

        return note

    return caught_by


def replace(cls: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Put `make(what was there)` in the place of an attribute."""
    setattr(cls, name, make(getattr(cls, name)))


def spoil(cls: Any, name: str, func: Callable[..., Any]) -> None:
    """Put `func` in the place of a method; it gets that method first."""
    replace(cls, name, lambda old: lambda *args, **kwargs: func(old, *args, **kwargs))
