"""Typed clients of msgbus.aio; those of msgbus, and what both have in common, are in tests/core/test_proxy.py."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, Protocol

import pytest

import msgbus
from msgbus import SerializationError, aio
from tests.aio.support import SERVER, TOPIC, conf_with, on_loop, until
from tests.core.typed_service import AsyncImages, Image, Thumbnail

AT = datetime(2026, 1, 2, tzinfo=UTC)


class Endpoint(AsyncImages):
    async def note(self, ctxt: dict[str, Any], image: Image) -> None:
        self.runs.append(f"{ctxt['user']} {image.name}")

    async def old(self, ctxt: Any) -> Any:
        return {"name": 5}


class Api(Protocol):
    async def resize(self, image: Image, size: tuple[int, int], at: datetime) -> Thumbnail: ...

    def thumbnails(self, image: Image, count: int) -> AsyncGenerator[Thumbnail, None]: ...

    async def plain(self, image: Image) -> Image: ...

    @msgbus.one_way
    async def note(self, image: Image) -> None: ...

    async def old(self) -> Image: ...


class Unannotated:
    """A server's class with a generator that does not say so."""

    async def count(self, ctxt, to):  # type: ignore[no-untyped-def]  # that is what it is about
        for number in range(to):
            yield number


class PlainApi(Protocol):
    def plain(self, image: Image) -> Image: ...


class WrongStreamApi(Protocol):
    async def thumbnails(self) -> AsyncIterator[Image]: ...


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@on_loop
async def test_calls_streams_and_casts(fake_url: str, codec: str) -> None:
    """Awaited, and iterated over with `async for`, they have the types that the class declares."""
    conf = await conf_with(rpc_codec=codec)
    endpoint, image = Endpoint(), Image("n", 3)
    async with (
        aio.get_rpc_transport(conf, fake_url) as transport,
        aio.get_rpc_server(transport, SERVER, [endpoint], validate=True),
    ):
        client = aio.get_rpc_client(transport, TOPIC, timeout=20)
        api = client.proxy(Api, {"user": "u"})
        assert await api.resize(image=image, size=(1, 2), at=AT) == Thumbnail(image, (1, 2), AT)
        assert await api.plain(image) == image
        assert [item.size async for item in api.thumbnails(image, 2)] == [(0, 0), (1, 1)]
        async with aclosing(api.thumbnails(image, 1000)) as stream:
            assert await anext(stream) == Thumbnail(image, (0, 0), datetime(2026, 1, 2))
        with pytest.raises(msgbus.InvalidArguments, match="size: expected array of length 2, got 1"):
            await api.resize(image, (1,), AT)  # type: ignore[arg-type]  # this is the fault
        with pytest.raises(SerializationError, match=r"Api\.old .* result\.name: expected str, got int"):
            await api.old()
        await api.note(image)
        await until(lambda: "u n" in endpoint.runs)
        with pytest.raises(TypeError, match=r"PlainApi\.plain is not async"):
            client.proxy(PlainApi)
        with pytest.raises(TypeError, match=r"WrongStreamApi\.thumbnails is a stream if it is declared with 'def'"):
            client.proxy(WrongStreamApi)


@on_loop
async def test_asynchronous_generators_are_streams_however_they_are_annotated(fake_url: str) -> None:
    """A call of one would only give its last item."""
    conf = await conf_with()
    async with (
        aio.get_rpc_transport(conf, fake_url) as transport,
        aio.get_rpc_server(transport, SERVER, [Unannotated()]),
    ):
        api: Any = aio.get_rpc_client(transport, TOPIC, timeout=20).proxy(Unannotated)
        assert [number async for number in api.count({}, 3)] == [0, 1, 2]
