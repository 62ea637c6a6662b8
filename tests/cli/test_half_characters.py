"""Commands that ask servers, one of which answers what JSON can write and no text can hold: half a character."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from msgbus import Target
from msgbus.cli.errors import Code
from msgbus.drivers.base import Address, Delivery, Message
from msgbus.encoding import decode_request
from tests.cli.described import Bus
from tests.cli.watched import QUICK
from tests.support import EVENT_TIMEOUT


class Good:
    """A server as usual."""

    def greet(self, ctxt: object) -> None: ...


@pytest.fixture
def bus() -> Iterator[Bus]:
    """One server as usual, and one named odd."""
    bus = Bus()
    bus.serve("good", Good())
    driver, at = bus.transport.driver, bus.transport.address(Target(topic="images"))

    def answer(delivery: Delivery) -> None:
        request = decode_request(delivery.message.body, delivery.message.content_type)
        delivery.accept()
        result = {"server": "odd", "topic": "images", "host": "h", "pid": 1, "\ud800": 1}
        reply = {"_msg_id": request.call_id, "result": result, "failure": None, "ending": True}
        message = Message(json.dumps(reply).encode(), "application/json", "id")
        driver.send(Address("inbox", name=request.reply_to or ""), message, mandatory=True)

    # With the topic, so that two servers are counted, and the answers of both are waited for.
    addresses = [at, at._replace(kind="server", server="odd"), at._replace(kind="fanout", server="odd")]
    driver.subscribe(addresses, answer, prefetch=10).ready.result(EVENT_TIMEOUT)
    yield bus
    for server in bus.servers:
        server.stop()
        server.wait(EVENT_TIMEOUT)
    bus.transport.cleanup()


@pytest.mark.parametrize(
    ("command", "code"), [(["describe", "images"], Code.USAGE), (["top", "images", "--once", *QUICK], 0)]
)
def test_the_other_servers_are_shown(bus: Bus, command: list[str], code: int) -> None:
    """And of that one, why it is not."""
    result = bus.run(*command)
    assert result.exit_code == code, result.output
    assert "good" in result.stdout
    assert "odd" in result.output


def test_stuck_looks_at_the_other_servers(bus: Bus) -> None:
    """It does not end with an error of Python."""
    result = bus.run("stuck", "images", *QUICK)
    assert "UnicodeEncodeError" not in result.output
    assert "odd" in result.output
