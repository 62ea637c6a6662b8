"""OpenTelemetry follows a notification from its notifier to its listener."""

from __future__ import annotations

import pytest

import msgbus
from msgbus import otel
from tests.core.test_otel import Telemetry, id_of, parent_of
from tests.notify.support import Endpoint, listening


@pytest.fixture
def telemetry() -> Telemetry:
    """An SDK of the test's own."""
    return Telemetry()


def test_a_notification_is_traced_as_a_cast_is(transport: msgbus.Transport, telemetry: Telemetry) -> None:
    """What the listener does is a child of the sending; both are counted."""
    client, server = otel.client_interceptor(**telemetry.providers), otel.server_interceptor(**telemetry.providers)
    endpoint = Endpoint()
    with listening(transport, endpoint, interceptors=[server]):
        msgbus.Notifier(transport, driver="messagingv2", interceptors=[client]).info({}, "order.created", {})
        assert endpoint.events(1) == ["order.created"]
        sent, processed = telemetry.spans(2)
    assert (sent.name, processed.name) == ("send notifications.info", "process notifications.info")
    assert parent_of(processed) == id_of(sent)
    assert telemetry.values("messaging.client.sent.messages") == [1]
    assert telemetry.values("messaging.client.consumed.messages") == [1]


def test_one_that_raises_is_an_error_of_its_span(transport: msgbus.Transport, telemetry: Telemetry) -> None:
    """Whether it comes again or not."""
    server = otel.server_interceptor(**telemetry.providers)
    endpoint = Endpoint(ValueError("bad"))
    with listening(transport, endpoint, interceptors=[server]):
        msgbus.Notifier(transport, driver="messagingv2").info({}, "e", {})
        (processed,) = telemetry.spans(1)
    assert (processed.attributes or {})["error.type"] == "ValueError"
