"""Callbacks in forked children, for objects that may be dropped before any fork.

A function given to `os.register_at_fork` stays registered until the process ends. So one function is registered, once,
and it knows the objects by weak references.
"""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Callable
from types import MethodType
from typing import Any

_numbers = itertools.count()
forks = 0
"""What `fork_count` returns, for code that asks with each message: read it as an attribute of this module."""
# In the order in which they were registered. (Not `weakref.WeakMethod`, whose callback may raise at exit.)
_methods: dict[int, tuple[weakref.ref[Any], Callable[[Any], object]]] = {}


def call_in_child(method: Callable[[], None]) -> None:
    """Have a bound method called in every forked child, for as long as its object lives. Thread-safe.

    Methods are called in the order in which they were registered, right after the fork, on the child's only thread.
    Whatever one of them raises, the others are called too. The object is not kept alive by this.

    Args:
        method: a method of an object, without arguments. In the child, locks and threads of the object are those of
            the parent: a lock may be held by a thread that does not exist there.

    Raises:
        TypeError: it is not a bound method.
    """
    if not isinstance(method, MethodType):
        raise TypeError(f"{method!r} is not a method of an object")
    number = next(_numbers)
    owner = weakref.ref(method.__self__, lambda _ref: _methods.pop(number, None))
    _methods[number] = (owner, method.__func__)


def fork_count() -> int:
    """How many forks lie between this process and the one that imported msgbus.

    An object that belongs to one process remembers the number: if it differs, the object is the parent's.
    """
    return forks


def _in_child() -> None:
    global forks  # noqa: PLW0603 - it is read with each message
    forks += 1
    errors = []
    for owner, func in list(_methods.values()):
        if (alive := owner()) is not None:
            try:
                func(alive)
            except BaseException as exc:  # The callbacks of the other objects have to run too.
                errors.append(exc)
    if errors:
        raise errors[0]  # Python writes it to stderr, and the child goes on.


os.register_at_fork(after_in_child=_in_child)
