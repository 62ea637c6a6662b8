"""What a method's annotations say: of its arguments, of its context, and of its result."""

from __future__ import annotations

import builtins
import collections.abc
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

EMPTY: Any = inspect.Parameter.empty
"""There is no annotation, or no default."""
ASYNC_STREAMS = (collections.abc.AsyncIterator, collections.abc.AsyncGenerator)
STREAMS = (collections.abc.Iterator, collections.abc.Generator, *ASYNC_STREAMS)
_ITERABLES = (*STREAMS, collections.abc.Iterable, collections.abc.AsyncIterable)
"""What a generator may be declared to return."""
WHERE = "define or import it where the module is loaded, and not in a function or under TYPE_CHECKING"
"""What to do about a name in an annotation that cannot be resolved."""


class Argument(NamedTuple):
    """An argument that is passed by name.

    Attributes:
        name: its name.
        kind: its type; `EMPTY` if it is not annotated.
        default: `EMPTY` if it has to be given.
    """

    name: str
    kind: Any
    default: Any


class Signature(NamedTuple):
    """The signature of a method, with its annotations as types.

    Attributes:
        name: the method's, with its class, for texts.
        context: the first parameter, which is passed by position; None if there is none.
        arguments: those that are passed by name.
        others: the type of further ones (``**kwargs``); `EMPTY` if it is not annotated, None if there are none.
        result: the type of its result, or, if it is a stream, of its items.
        stream: the kind of iterator that it returns, one of `STREAMS`: so it is declared, or is a generator. None if it
            returns something else.
    """

    name: str
    context: Argument | None
    arguments: Mapping[str, Argument]
    others: Any
    result: Any
    stream: Any


def read_signature(method: Callable[..., Any], owner: type, name: str, *, takes_context: bool = True) -> Signature:
    """Read the signature of a method as it is called: of a bound one without ``self``.

    Args:
        method: what is called.
        owner: the class whose attribute it is: its annotations may name what is in the class.
        name: the method's name, with its class, for texts.
        takes_context: the first parameter is the caller's context.

    Raises:
        TypeError: an annotation cannot be resolved.
    """
    function = function_of(method)
    context: Argument | None = None
    arguments: dict[str, Argument] = {}
    others: Any = None
    try:
        signature = inspect.signature(method)
    except NameError as exc:  # From Python 3.14 on annotations are evaluated there.
        raise TypeError(f"{name}: an annotation cannot be resolved: {exc}; {WHERE}") from None
    except (ValueError, TypeError):  # It is not written in Python.
        return Signature(name, None, {}, EMPTY, EMPTY, None)
    names = _namespace(function, owner)
    for parameter in signature.parameters.values():
        kind = _resolved(parameter.annotation, names, f"{name}: the annotation of {parameter.name}")
        if parameter.kind is parameter.VAR_KEYWORD:
            others = kind
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            argument = Argument(parameter.name, kind, parameter.default)
            if takes_context and context is None and parameter.kind is not parameter.KEYWORD_ONLY:
                context = argument
            elif parameter.kind is not parameter.POSITIONAL_ONLY:
                arguments[argument.name] = argument
    result = _resolved(signature.return_annotation, names, f"{name}: the annotation of the result")
    origin = typing.get_origin(result) or result
    stream = origin if origin in STREAMS else _kind_of_generator(function)
    if stream is not None:
        result = next(iter(typing.get_args(result)), EMPTY) if origin in _ITERABLES else EMPTY
    return Signature(name, context, arguments, others, result, stream)


def is_generator(method: Any) -> bool:
    """Whether a method, under its decorators, is a generator."""
    return _kind_of_generator(function_of(method)) is not None


def _kind_of_generator(function: Any) -> Any:
    """The kind of iterator that a function returns, if it is a generator; else None."""
    innermost = inspect.unwrap(function)
    if inspect.isasyncgenfunction(innermost):
        return collections.abc.AsyncIterator
    return collections.abc.Iterator if inspect.isgeneratorfunction(innermost) else None


def function_of(method: Any) -> Any:
    """The function that a method runs first: without what binds it, and with its decorators."""
    method = unbound(method)
    if not isinstance(method, types.FunctionType) and not hasattr(method, "__wrapped__"):
        called = getattr(type(method), "__call__", None)  # noqa: B004 - the method is needed
        return called if isinstance(called, types.FunctionType) else method
    return method


def unbound(method: Any) -> Any:
    """What a method is without what binds it, and its arguments."""
    while True:
        if isinstance(method, staticmethod | classmethod | types.MethodType):
            method = method.__func__
        elif isinstance(method, functools.partial | functools.partialmethod):
            method = method.func
        else:
            return method


def mark_of(method: Any, name: str) -> Any:
    """What a decorator has noted under a name on a method, as it is kept in an endpoint; None: nothing.

    None of the method's code runs.
    """
    candidates = (unbound(method), inspect.getattr_static(type(method), "__call__", None))
    found = (inspect.getattr_static(one, name, None) for one in candidates)
    return next((mark for mark in found if mark is not None), None)


def _namespace(function: Any, owner: type) -> dict[str, Any]:
    """The names that annotations may use: those of the function's module come first, then those of its class."""
    innermost = inspect.unwrap(function)
    module = getattr(innermost, "__globals__", None)
    if module is None:
        module = vars(sys.modules.get(getattr(innermost, "__module__", ""), builtins))
    inside = {name: value for cls in reversed(owner.__mro__) for name, value in vars(cls).items()}
    # From Python 3.12 on: def method[T](...), class Endpoint[T]
    generic = [kind for one in (*reversed(owner.__mro__), innermost) for kind in getattr(one, "__type_params__", ())]
    return {**inside, **vars(builtins), **module, **{kind.__name__: kind for kind in generic}}


def _resolved(annotation: Any, names: dict[str, Any], what: str) -> Any:
    """The type that an annotation means, which may be text or hold text.

    Raises:
        TypeError: a name in it means nothing there.
    """
    if annotation is EMPTY:
        return EMPTY

    def bearer() -> None:
        """Bears the annotation."""

    bearer.__annotations__ = {"it": annotation}
    try:
        return typing.get_type_hints(bearer, names, include_extras=True)["it"]
    except Exception as exc:  # Text is evaluated, and may do anything.
        shown = annotation if isinstance(annotation, str) else repr(annotation)
        raise TypeError(f"{what}, {shown}, cannot be resolved: {exc}; {WHERE}") from None
