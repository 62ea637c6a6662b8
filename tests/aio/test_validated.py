"""Servers of msgbus.aio check arguments by annotations, as synchronous ones do: tests/core/test_validated.py."""

from __future__ import annotations

import pytest

from msgbus import InvalidArguments, aio
from tests.aio.support import SERVER, TOPIC, conf_with, on_loop
from tests.core.typed_service import AsyncImages

IMAGE = {"name": "n", "width": 3}
AT = "2026-01-02T00:00:00"


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@on_loop
async def test_arguments_are_checked_and_converted(fake_url: str, codec: str) -> None:
    """Of async methods, asynchronous generators and plain methods; one that does not fit keeps them from running.

    The server describes itself as others do.
    """
    conf = await conf_with(rpc_codec=codec)
    endpoint = AsyncImages()
    async with (
        aio.get_rpc_transport(conf, fake_url) as transport,
        aio.get_rpc_server(transport, SERVER, [endpoint], validate=True),
    ):
        client = aio.get_rpc_client(transport, TOPIC, timeout=20)
        with pytest.raises(InvalidArguments, match=r"image\.width: expected int >= 1, got 0"):
            await client.call({}, "resize", image={"name": "n", "width": 0}, size=[1, 2], at=AT)
        with pytest.raises(InvalidArguments, match=r"image\.width: expected int >= 1, got 0"):
            await client.call({}, "plain", image={"name": "n", "width": 0})
        with pytest.raises(InvalidArguments, match="count: expected int, got str"):
            await anext(client.multicall({}, "thumbnails", image=IMAGE, count="x"))
        with pytest.raises(InvalidArguments, match="missing 2 required positional arguments"):
            await client.call({}, "resize", image=IMAGE)
        assert endpoint.runs == []
        resized = await client.call({}, "resize", image=IMAGE, size=[1, 2], at=AT)
        assert resized == {"image": IMAGE, "size": [1, 2], "at": AT}
        assert await client.call({}, "plain", image=IMAGE) == IMAGE
        sizes = [item["size"] async for item in client.multicall({}, "thumbnails", image=IMAGE, count=2)]
        assert sizes == [[0, 0], [1, 1]]
        described = await client.prepare(namespace="msgbus").call({}, "describe")
        assert [method["name"] for method in described["interfaces"][0]["methods"] if method["stream"]] == [
            "thumbnails"
        ]
