"""Where `msgbus serve --metrics` listens. What is shown there, tests/functional/test_cli_serve.py looks at."""

from __future__ import annotations

import http.client
import socket
from urllib.parse import urlsplit

import click
import pytest

from msgbus.cli.metrics import metrics_at
from tests.support import EVENT_TIMEOUT


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_the_url_can_be_opened(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is printed, also that of an address of IPv6."""
    if host == "[::1]":
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("this machine has no IPv6")
    monkeypatch.setattr("opentelemetry.metrics.set_meter_provider", lambda _provider: None)
    with metrics_at(f"{host}:0", "shop") as found:
        assert found is not None
        assert found.url.startswith(f"http://{host}:")
        connection = http.client.HTTPConnection(urlsplit(found.url).netloc, timeout=EVENT_TIMEOUT)
        connection.request("GET", "/metrics")
        assert connection.getresponse().status == 200
        connection.close()


@pytest.mark.parametrize("address", ["", "localhost", "65536", "9" * 5000])
def test_what_is_no_port_is_wrong_usage(address: str) -> None:
    """Also a number with more digits than Python reads."""
    with pytest.raises(click.UsageError, match="a port is a number from 0 to 65535"), metrics_at(address, "shop"):
        pass
