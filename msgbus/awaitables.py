"""Finds `async` methods, and refuses them, and what they return, where nothing is awaited.

A call of an `async` method returns a coroutine, and has run none of the method's code. If the coroutine were taken for
a result, the work would count as done and never happen.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
from collections.abc import Coroutine, Generator, Iterator
from typing import Any

from msgbus.exceptions import RPCDispatcherError

PLAIN = frozenset({type(None), bool, int, float, str, bytes, list, tuple, dict})
"""What most methods return. A result of these types need not be given to `refuse_awaitable`."""


def is_async(found: object) -> bool:
    """Whether it is a function, or an object, that has to be awaited or iterated over asynchronously when it is called.

    Nothing is called: a plain function that returns a coroutine is not noticed. `refuse_awaitable`
    notices that.
    """
    while True:
        if isinstance(found, staticmethod | classmethod | types.MethodType):
            found = found.__func__
        elif isinstance(found, functools.partial | functools.partialmethod | functools.singledispatchmethod):
            found = found.func
        elif isinstance(found, functools._lru_cache_wrapper):
            found = found.__wrapped__
        else:
            break
    if isinstance(found, type):  # Calling a class makes an object.
        return False
    candidates = (found, getattr(type(found), "__call__", None))  # noqa: B004 - the method is needed
    return any(inspect.iscoroutinefunction(one) or inspect.isasyncgenfunction(one) for one in candidates)


def async_methods(endpoint: object) -> Iterator[str]:
    """The names of an endpoint's attributes that are `async`. No property is evaluated."""
    for name in dir(endpoint):
        found = inspect.getattr_static(endpoint, name, None)
        if isinstance(found, types.MemberDescriptorType):  # made by __slots__: reading it runs no code
            found = getattr(endpoint, name, None)
        if is_async(found):
            yield name


def refuse_async(what: str, found: object) -> None:
    """Refuse a function that msgbus would have to await.

    Raises:
        TypeError: it is `async`.
    """
    if is_async(found):
        raise TypeError(f"{what} is async, and msgbus does not await it: make it a plain function")


def refuse_awaitable(what: str, result: Any) -> None:
    """Refuse what would have to be awaited. A coroutine is closed.

    Args:
        what: what has returned it, as the beginning of a sentence: ``"the method 'greet' returned"``.
        result: anything.

    Raises:
        RPCDispatcherError: it is a coroutine or another awaitable, or can only be iterated over asynchronously.
    """
    cls = type(result)
    if cls in PLAIN:
        return
    if cls is types.GeneratorType:
        if not inspect.isawaitable(result):  # One made with types.coroutine is.
            return
    elif not hasattr(cls, "__await__") and (not hasattr(cls, "__aiter__") or hasattr(cls, "__iter__")):
        return
    if isinstance(result, Coroutine | Generator):
        with contextlib.suppress(Exception):  # Else Python warns that it was never awaited.
            result.close()
    raise RPCDispatcherError(
        f"{what} {_named(cls)}, which msgbus does not await, so it has not run: return a plain value, or declare the "
        "server's method with 'async def' and await it there"
    )


def _named(cls: type) -> str:
    name = cls.__name__.replace("_", " ")
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
