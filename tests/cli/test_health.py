"""The health endpoint of `msgbus serve`, with a server that is as the test wants it."""

from __future__ import annotations

import errno
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from socketserver import TCPServer
from typing import Any, cast

import click
import pytest

from msgbus import Health
from msgbus.cli import health as module
from msgbus.cli.health import health_endpoint
from tests.support import EVENT_TIMEOUT


class Served:
    """Is as healthy as the test says."""

    def __init__(self) -> None:
        self.health = Health(live=True, ready=True, why=())
        self.asked = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def healthy(self, _timeout: float) -> Health:
        self.asked.set()
        assert self.go_on.wait(EVENT_TIMEOUT)
        return self.health


@pytest.fixture
def served() -> Iterator[Served]:
    """A server that is well."""
    made = Served()
    yield made
    made.go_on.set()


@pytest.fixture
def port(served: Served) -> Iterator[int]:
    """Where its health can be asked for."""
    with health_endpoint(cast(Any, served), "127.0.0.1", 0) as url:
        assert url is not None
        yield int(url.rpartition(":")[2])


def get(port: int, path: str, method: str = "GET") -> tuple[int, Any]:
    """The status, and what was read as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=EVENT_TIMEOUT)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        text = response.read()
        return response.status, json.loads(text) if text.startswith(b"{") else None
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("health", "live", "ready"),
    [
        (Health(live=True, ready=True, why=()), 200, 200),
        (Health(live=True, ready=False, why=("it is being stopped",)), 200, 503),
        (Health(live=False, ready=False, why=("its transport was closed", "no")), 503, 503),
    ],
)
def test_the_status_says_how_it_is(served: Served, port: int, health: Health, live: int, ready: int) -> None:
    """And the content why."""
    served.health = health
    for path, status in (("/live", live), ("/ready", ready), ("/ready?verbose", ready)):
        found, content = get(port, path)
        assert (found, content) == (status, {"live": health.live, "ready": health.ready, "why": list(health.why)})
        assert get(port, path, "HEAD") == (status, None)


def test_other_requests_are_refused(served: Served, port: int) -> None:
    """There is nothing else, and nothing can be changed."""
    assert get(port, "/")[0] == 404
    assert get(port, "/live/more") == (404, {"error": "there are /live and /ready"})
    assert get(port, "/live", "POST")[0] == 501
    assert not served.asked.is_set()


def read_to_end(sock: socket.socket) -> bytes:
    """What comes until the other side closes the connection."""
    found = b""
    try:
        while chunk := sock.recv(1000):
            found += chunk
    except ConnectionResetError:
        pass
    return found


def test_a_client_that_sends_nothing_is_cut_off(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that sends a byte now and then."""
    monkeypatch.setattr(module, "REQUEST_TIMEOUT", 0.2)
    with socket.create_connection(("127.0.0.1", port), EVENT_TIMEOUT) as sock:
        sock.sendall(b"GET /live HT")
        assert read_to_end(sock) == b""
    assert get(port, "/live")[0] == 200


def test_clients_that_send_nothing_keep_nobody_out(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, the oldest of them makes room. A probe that is refused would get the server restarted."""
    monkeypatch.setattr(module, "REQUEST_TIMEOUT", 10 * EVENT_TIMEOUT)
    with ExitStack() as opened:
        idle = [opened.enter_context(socket.create_connection(("127.0.0.1", port), EVENT_TIMEOUT)) for _ in range(20)]
        assert [get(port, "/live")[0] for _ in range(20)] == [200] * 20
        assert read_to_end(idle[0]) == b""


def test_without_descriptors_it_tries_again_after_a_pause(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And takes no processor time from the server, which may need what is left."""
    events: list[str] = []
    accept, sleep = TCPServer.get_request, time.sleep

    def refuse(server: TCPServer) -> Any:
        events.append("tried")
        if len(events) < 4:
            raise OSError(errno.EMFILE, "too many open files")
        return accept(server)

    def pause(seconds: float) -> None:
        events.append("paused")
        sleep(seconds)

    monkeypatch.setattr(TCPServer, "get_request", refuse)
    monkeypatch.setattr("msgbus.cli.health.time.sleep", pause)
    assert get(port, "/live")[0] == 200
    assert events == ["tried", "paused", "tried", "paused", "tried"]


def test_too_many_requests_at_a_time_are_refused(served: Served, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their connections are closed. When the others are answered, there is room again."""
    served.go_on.clear()
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(get(port, "/live")[0])) for _ in range(8)]
    for thread in threads:
        served.asked.clear()
        thread.start()
        assert served.asked.wait(EVENT_TIMEOUT)
    with socket.create_connection(("127.0.0.1", port), EVENT_TIMEOUT) as sock:
        assert read_to_end(sock) == b""
    served.go_on.set()
    for thread in threads:
        thread.join()
    assert answers == [200] * 8
    assert get(port, "/ready")[0] == 200


def test_a_port_that_is_taken_is_wrong_usage(served: Served, port: int) -> None:
    """The text says which."""
    taken = health_endpoint(cast(Any, served), "127.0.0.1", port)
    with pytest.raises(click.UsageError, match=rf"--health.*127\.0\.0\.1, port {port}.*in use"):
        taken.__enter__()


def test_it_ends_with_its_block(served: Served) -> None:
    """Nobody listens there any more. Without a port there is none."""
    with health_endpoint(cast(Any, served), "127.0.0.1", 0) as url:
        assert url is not None
        port = int(url.rpartition(":")[2])
        socket.create_connection(("127.0.0.1", port), EVENT_TIMEOUT).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), EVENT_TIMEOUT)
    with health_endpoint(cast(Any, served), "127.0.0.1", None) as url:
        assert url is None


def test_it_listens_on_ipv6(served: Served) -> None:
    """The address says so."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with health_endpoint(cast(Any, served), "::1", 0) as url:
        assert url is not None
        assert url.startswith("http://[::1]:")
        socket.create_connection(("::1", int(url.rpartition(":")[2])), EVENT_TIMEOUT).close()
