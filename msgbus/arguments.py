"""Errors for arguments that do not fit the signature of a method."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any

from msgbus.exceptions import InvalidArguments


def begin(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call an ``async`` function. That runs none of its code: if it fails, the arguments do not fit.

    Raises:
        InvalidArguments: they do not.
    """
    try:
        return func(*args, **kwargs)
    except TypeError as exc:
        hint = ""
        if args:
            hint = forgotten_context(func if isinstance(func, MethodType) else MethodType(func, args[0]), kwargs)
        raise InvalidArguments(f"{exc}{hint}") from None


def forgotten_context(method: Callable[..., Any], args: dict[str, Any]) -> str:
    """A hint, where a method would take the arguments if there were no context before them."""
    try:
        inspect.signature(method).bind(**args)
    except (TypeError, ValueError):
        return ""
    return f"; a method takes the caller's context first: def {getattr(method, '__name__', 'method')}(self, ctxt, ...)"
