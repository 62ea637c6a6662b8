"""What the conformance suite runs clients and servers for asyncio with."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from typing import Any

import pytest

from msgbus.conformance import blocking
from msgbus.conformance.async_endpoint import AsyncEndpoint
from msgbus.conformance.blocking import EventLoop
from msgbus.conformance.endpoint import Endpoint


def methods(cls: type) -> dict[str, Callable[..., Any]]:
    """What a service of this class runs, private methods too."""
    return {name: func for name, func in vars(cls).items() if inspect.isfunction(func) and not name.startswith("__")}


def test_both_endpoints_have_the_same_methods() -> None:
    """With the same parameters; a generator is an asynchronous one there, and any other method a coroutine function."""
    plain, asynchronous = methods(Endpoint), methods(AsyncEndpoint)
    assert set(plain) - {"_note"} == set(asynchronous) - {"_await_gate"}
    for name in set(plain) & set(asynchronous):
        mine, other = asynchronous[name], plain[name]
        assert inspect.signature(mine).parameters == inspect.signature(other).parameters, name
        assert inspect.isasyncgenfunction(mine) == inspect.isgeneratorfunction(other), name
        assert inspect.isasyncgenfunction(mine) or inspect.iscoroutinefunction(mine), name
        assert getattr(mine, "exposed", False) == getattr(other, "exposed", False), name


def test_an_error_that_nobody_awaits_is_reported() -> None:
    """A callback of the event loop that raises fails the check at its end; the thread has ended then."""
    loop = EventLoop()

    async def begin() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)

    loop.run(begin())
    with pytest.raises(AssertionError, match="division by zero"):
        loop.close()
    assert "check-asyncio" not in [thread.name for thread in threading.enumerate()]
    loop.close()


def test_a_task_that_does_not_end_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named, and cancelled."""
    monkeypatch.setattr(blocking, "END_TIMEOUT", 0.1)
    loop = EventLoop()
    tasks: list[asyncio.Task[Any]] = []

    async def begin() -> None:
        tasks.append(asyncio.create_task(asyncio.Event().wait(), name="waits for ever"))

    loop.run(begin())
    with pytest.raises(AssertionError, match=r"a task is left: .*waits for ever"):
        loop.close()
    assert tasks[0].cancelled()
