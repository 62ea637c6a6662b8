"""What passes ``async`` interceptors besides the verbs; tests/core/test_what_is_intercepted.py has more."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Protocol

import pytest

import msgbus
from msgbus import AccessDenied, InterceptedRequest, InvalidArguments, aio
from msgbus.aio import AsyncInterceptor, AsyncProceed
from tests.aio.support import SERVER, TOPIC, conf_with, on_loop
from tests.core.typed_service import Image

Log = list[Any]


class Images:
    """What the server runs: methods that are ``async``, and a plain one."""

    async def widen(self, ctxt: Any, image: Image, by: int) -> Image:
        return Image(image.name, image.width + by)

    def plain_widen(self, ctxt: Any, image: Image, by: int) -> Image:
        return Image(image.name, image.width + by)

    async def parts(self, ctxt: Any, image: Image) -> AsyncIterator[Image]:
        for number in range(2):
            yield Image(f"{image.name}{number}")


class Api(Protocol):
    async def widen(self, image: Image, by: int) -> Image: ...

    async def plain_widen(self, image: Image, by: int) -> Image: ...

    def parts(self, image: Image) -> AsyncGenerator[Image, None]: ...


def noting(log: Log) -> AsyncInterceptor:
    """An interceptor that notes what passes."""

    async def intercept(request: InterceptedRequest, proceed: AsyncProceed) -> Any:
        log.append((request.kind, request.method, dict(request.args)))
        return await proceed(request)

    return intercept


@on_loop
async def test_a_typed_client_passes_interceptors(fake_url: str) -> None:
    """Its calls and streams do, on both sides; arguments are checked inside those of the server."""
    of_client: Log = []
    of_server: Log = []
    async with (
        aio.get_rpc_transport(await conf_with(), fake_url) as transport,
        aio.get_rpc_server(transport, SERVER, [Images()], validate=True, interceptors=[noting(of_server)]),
    ):
        client = aio.get_rpc_client(transport, TOPIC, timeout=20, interceptors=[noting(of_client)])
        api = client.proxy(Api)
        assert await api.widen(image=Image("a"), by=2) == Image("a", 3)
        assert await api.plain_widen(image=Image("a"), by=2) == Image("a", 3)
        assert [part async for part in api.parts(image=Image("b"))] == [Image("b0"), Image("b1")]
        with pytest.raises(InvalidArguments):
            await client.call({}, "widen", image={"name": "a", "width": 1}, by="two")
    assert of_client == of_server
    assert of_client == [
        ("call", "widen", {"image": {"name": "a", "width": 1}, "by": 2}),
        ("call", "plain_widen", {"image": {"name": "a", "width": 1}, "by": 2}),
        ("multicall", "parts", {"image": {"name": "b", "width": 1}}),
        ("call", "widen", {"image": {"name": "a", "width": 1}, "by": "two"}),
    ]


@on_loop
async def test_gather_passes_the_interceptors_of_servers_only(fake_url: str) -> None:
    """What msgbus itself answers passes not even those; `stats` counts what they answer."""
    of_client: Log = []
    of_server: Log = []

    async def refuse(request: InterceptedRequest, proceed: AsyncProceed) -> Any:
        if request.context.get("do") == "deny":
            raise AccessDenied("denied")
        return "of the interceptor"

    async with (
        aio.get_rpc_transport(await conf_with(), fake_url) as transport,
        aio.get_rpc_server(transport, SERVER, [Images()], interceptors=[noting(of_server), refuse]),
    ):
        client = aio.get_rpc_client(transport, TOPIC, timeout=20, interceptors=[noting(of_client)])
        assert [answer.value async for answer in client.gather({}, "widen")] == ["of the interceptor"]
        denied = [answer.error async for answer in client.gather({"do": "deny"}, "widen")]
        assert isinstance(denied[0], msgbus.AccessDenied)
        stats = [answer.value async for answer in client.prepare(namespace="msgbus").gather({}, "stats")]
        assert len(await client.ping()) == 1
    assert stats[0]["methods"]["widen"] == {"begun": 1, "finished": 1, "failed": 0, "cancelled": 0}
    assert stats[0]["refused"] == 1
    assert of_server == [("call", "widen", {})] * 2
    assert of_client == []
