"""``msgbus serve --metrics``: what Prometheus reads, by OpenTelemetry's own exporter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider

    from msgbus.transport import Transport


class Metrics:
    """Where metrics are collected.

    Attributes:
        url: where Prometheus reads them.
    """

    def __init__(self, url: str, provider: MeterProvider) -> None:
        self.url = url
        self._provider = provider

    def options_for(self, transport: Transport, endpoints: Sequence[object]) -> dict[str, Any]:
        """Measure a transport, and return what `msgbus.get_rpc_server` is given so that the server is measured.

        Raises:
            TypeError: an endpoint is invalid.
        """
        from msgbus import otel
        from msgbus.dispatcher import RPCDispatcher

        on_event_loop = RPCDispatcher(endpoints, asynchronous=True).has_async
        make = otel.async_server_interceptor if on_event_loop else otel.server_interceptor
        otel.observe_transport(transport, meter_provider=self._provider)
        return {
            "interceptors": [make(meter_provider=self._provider)],
            "on_dead_letter": otel.dead_letter_counter(self._provider),
        }


@contextmanager
def metrics_at(address: str | None, service: str) -> Iterator[Metrics | None]:
    """Let Prometheus read at an address, ``[HOST:]PORT``, while the block runs; None: no metrics.

    Args:
        address: where.
        service: the name of the service, unless OpenTelemetry's environment variables name it.

    Raises:
        click.UsageError: the address cannot be used, or a library is missing.
    """
    if address is None:
        yield None
        return
    host, port = _parsed(address)
    try:
        from opentelemetry import metrics
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from prometheus_client import start_http_server
    except ImportError as exc:
        raise click.UsageError(f"--metrics: {exc}: pip install 'msgbus[prometheus]'") from exc
    try:
        server, _ = start_http_server(port, host or "0.0.0.0")  # noqa: S104 - as the help says
    except OSError as exc:
        raise click.UsageError(f"--metrics {address}: {exc.strerror or exc}") from exc
    resource = Resource.create()
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: service}))
    provider = MeterProvider([PrometheusMetricReader()], resource)
    metrics.set_meter_provider(provider)  # The service may measure something too.
    try:
        shown = "localhost" if host == "" else f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{server.server_port}/metrics"
        yield Metrics(url, provider)
    finally:
        server.shutdown()
        server.server_close()
        provider.shutdown()


def _parsed(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) < 65536):
        raise click.UsageError(f"--metrics {address}: a port is a number from 0 to 65535: 9464, or HOST:9464")
    return host.removeprefix("[").removesuffix("]"), int(port)
