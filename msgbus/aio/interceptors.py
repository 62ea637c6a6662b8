"""Interceptors that are ``async``: those of clients for asyncio, and of servers that run requests on an event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Protocol

from msgbus.awaitables import PLAIN
from msgbus.interceptors import InterceptedRequest, check_request, refuse_coroutine


class AsyncProceed(Protocol):
    """As `msgbus.Proceed`; it has to be awaited."""

    def __call__(self, request: InterceptedRequest, /) -> Awaitable[Any]:
        """Run the request; raises whatever comes of that."""


class AsyncInterceptor(Protocol):
    """As `msgbus.Interceptor`, and ``async``."""

    def __call__(self, request: InterceptedRequest, proceed: AsyncProceed, /) -> Awaitable[Any]:
        """Return the result, mostly that of ``await proceed(request)``."""


def async_chain(
    interceptors: Sequence[AsyncInterceptor],
    last: AsyncProceed,
    around: Callable[[AsyncProceed], AsyncProceed] | None = None,
) -> AsyncProceed:
    """As `msgbus.interceptors.chain`, for those that are ``async``."""
    proceed: AsyncProceed = partial(_run_last, last)
    for interceptor in reversed(interceptors):
        proceed = partial(_run, interceptor, around(proceed) if around is not None else proceed)
    return proceed


async def _run_last(last: AsyncProceed, request: InterceptedRequest) -> Any:
    check_request(request)
    return await last(request)


async def _run(interceptor: AsyncInterceptor, proceed: AsyncProceed, request: InterceptedRequest) -> Any:
    check_request(request)
    result = await interceptor(request, proceed)
    if type(result) not in PLAIN:
        refuse_coroutine(interceptor, result)
    return result


async def async_only(value: Any) -> AsyncIterator[Any]:
    """The items of what is no iterator where a stream is wanted."""
    yield value


async def close_items(items: object) -> None:
    """Close an iterator, if it can be closed."""
    aclose = getattr(items, "aclose", None)
    if aclose is not None:
        await aclose()
