"""`cast_many` over a connection that breaks, or falls silent, in the middle."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from msgbus import CastsFailed, Target, get_rpc_client, get_rpc_server
from msgbus.conformance.waiting import until
from tests.functional.brokers.proxy import Proxy
from tests.functional.brokers.rabbitmq import RabbitMQ
from tests.functional.services import Connect

CASTS = 20_000
BREAKS = 3000
"""After so many casts the connection breaks, and again after as many more."""
SECONDS = 60.0


class Noting:
    """Counts how often each request runs.

    Attributes:
        topic: a new one. (What may have been delivered can be in the topic's queue at the end of a test.)
    """

    def __init__(self) -> None:
        self.topic = f"casts-{uuid.uuid4().hex}"
        self.ran: Counter[int] = Counter()
        self._lock = threading.Lock()

    def note(self, ctxt: Any, value: int) -> None:
        with self._lock:
            self.ran[value] += 1


@pytest.fixture
def noting(rabbitmq: RabbitMQ, connect: Connect) -> Iterator[Noting]:
    """What runs on a server whose own connection does not break."""
    endpoint = Noting()
    server = get_rpc_server(connect(rabbitmq.url), Target(topic=endpoint.topic, server="s"), [endpoint])
    server.start()
    yield endpoint
    server.stop()
    server.wait()


@pytest.mark.parametrize("fault", ["cut", "stall"])
@pytest.mark.parametrize("delivery", ["at_most_once", "at_least_once"])
def test_a_connection_that_breaks_in_the_middle(
    rabbitmq: RabbitMQ, connect: Connect, noting: Noting, delivery: Any, fault: str
) -> None:
    """What counts as confirmed runs. Of the rest, only what counts as unknown may. At most once, nothing runs twice."""
    with closing(Proxy(rabbitmq.port)) as proxy:
        sending = connect(rabbitmq.url.replace(f":{rabbitmq.port}/", f":{proxy.port}/"))
        client = get_rpc_client(sending, Target(topic=noting.topic), delivery=delivery)
        if fault == "stall":
            client = client.prepare(deadline=5.0)

        def requests() -> Iterator[tuple[str, dict[str, Any]]]:
            for n in range(CASTS):
                if n in (BREAKS, 2 * BREAKS):
                    getattr(proxy, fault)()
                yield "note", {"value": n}

        failed: dict[int, Exception] = {}
        unknown: list[int] = []
        try:
            begun = client.cast_many({}, requests())
        except CastsFailed as exc:
            begun, failed, unknown = exc.begun, exc.failed, exc.unknown
        assert sending.window.idle
        proxy.resume()
    if (delivery, fault) == ("at_least_once", "cut"):
        assert (begun, failed) == (CASTS, {})
    else:
        assert BREAKS // 2 < begun < CASTS
        assert unknown
    confirmed = set(range(begun)) - set(failed)
    until(lambda: confirmed <= set(noting.ran.copy()), "all that were confirmed", SECONDS)
    assert set(noting.ran) <= confirmed | set(unknown)
    if delivery == "at_most_once":
        assert set(noting.ran.values()) == {1}
