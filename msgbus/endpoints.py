"""What may be an endpoint: an object whose methods are called."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

from msgbus.target import Target

_NOT_ENDPOINTS = (type(None), str, bytes, int, float, list, tuple, dict, set, frozenset, Target)
"""Types whose objects have methods, but are only passed as an endpoint by mistake."""


def check_endpoints(endpoints: object) -> None:
    """Check that endpoints come as a list.

    Raises:
        TypeError: they do not.
    """
    if isinstance(endpoints, str | bytes | dict | type) or not isinstance(endpoints, Iterable):
        raise TypeError(f"endpoints is a list of objects, [endpoint], not {endpoints!r}")


def check_endpoint(endpoint: object) -> None:
    """Check that an endpoint is an object, and none that is one by mistake.

    Raises:
        TypeError: it has no methods of its own, or is a class whose methods need an object.
    """
    if isinstance(endpoint, _NOT_ENDPOINTS) or inspect.isroutine(endpoint):
        raise TypeError(f"an endpoint is an object whose methods are called, not {endpoint!r}")
    if isinstance(endpoint, type) and any(
        inspect.isfunction(inspect.getattr_static(endpoint, name, None)) for name in dir(endpoint) if name[0] != "_"
    ):
        raise TypeError(f"an endpoint is an object, and {endpoint.__name__} is a class: {endpoint.__name__}()")
