"""Answers HTTP requests for the health of a server, for ``msgbus serve --health``."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any

import click

from msgbus.foreign import get_logger

if TYPE_CHECKING:
    from msgbus.server import RPCServer

LOG = get_logger(__name__)

REACT_WITHIN = 0.5
"""Seconds in which the server has to react. A probe of Kubernetes waits for a second."""
REQUEST_TIMEOUT = 2.0
"""Seconds that a request may take, from its first byte to the end of the answer."""
MOST_REQUESTS = 8
"""So many connections are open at a time. For a further one, the oldest is closed that has sent no request yet."""
PAUSE = 0.1
"""Seconds after a connection could not be accepted."""
MAKE_ROOM = 0.2
"""Seconds for which a further connection waits for the place of the one that is closed for it."""


def shut_down(connection: socket.socket) -> None:
    """End a connection that another thread reads or writes."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        LOG.debug("a connection to the health endpoint has ended by itself")


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: _Endpoint
    server_version = "msgbus"
    sys_version = ""

    def handle(self) -> None:
        # The handler's own timeout would begin anew with each byte that comes.
        cut = threading.Timer(REQUEST_TIMEOUT, self._cut)
        cut.daemon = True
        cut.start()
        try:
            super().handle()
        finally:
            cut.cancel()

    def _cut(self) -> None:
        shut_down(self.connection)

    def do_GET(self) -> None:
        """Answer a probe."""
        self.server.silent.pop(self.connection, None)
        path = self.path.partition("?")[0]
        if path not in ("/live", "/ready"):
            self._answer(HTTPStatus.NOT_FOUND, {"error": "there are /live and /ready"})
            return
        health = self.server.served.healthy(REACT_WITHIN)
        well = health.live if path == "/live" else health.ready
        status = HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE
        self._answer(status, {"live": health.live, "ready": health.ready, "why": health.why})

    do_HEAD = do_GET

    def _answer(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Probes come every few seconds: they are of interest to whoever looks for an error."""
        LOG.debug("health endpoint: %s %s", self.client_address[0], format % args)


class _Endpoint(ThreadingHTTPServer):
    """Listens on a thread of its own, and answers a bounded number of requests at a time.

    Attributes:
        served: whose health it is.
        silent: the connections on which no request has come yet, the oldest first.
    """

    daemon_threads = True

    def __init__(self, address: tuple[str, int], served: RPCServer) -> None:
        self.served = served
        self.silent: dict[socket.socket, None] = {}
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._places = threading.Semaphore(MOST_REQUESTS)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind the socket. The method of `HTTPServer` would look for a name of the address, which may take long."""
        TCPServer.server_bind(self)
        host, self.server_port = self.server_address[:2]
        self.server_name = str(host)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection."""
        try:
            return super().get_request()
        except OSError:  # No descriptor may be left. Then the same connection would be tried again without a pause.
            time.sleep(PAUSE)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin to answer a request, if not too many are being answered."""
        if not self._places.acquire(blocking=False) and not self._make_room():
            self.shutdown_request(request)
            return
        self.silent[request] = None
        try:
            super().process_request(request, client_address)
        except BaseException:  # The operating system gives no thread.
            self._end(request)
            raise

    def _make_room(self) -> bool:
        """Take the place of the oldest client that has sent no request: others have to be answered all the same."""
        for silent in list(self.silent):
            shut_down(silent)
            return self._places.acquire(timeout=MAKE_ROOM)
        return False

    def _end(self, request: Any) -> None:
        self.silent.pop(request, None)
        self._places.release()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a request, on a thread of its own."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._end(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Its client is gone, or has sent nothing sensible."""
        LOG.debug("a request to the health endpoint failed")


@contextmanager
def health_endpoint(server: RPCServer, address: str, port: int | None) -> Iterator[str | None]:
    """Answer requests meanwhile. Yields the URL under which it listens; without a port nothing is done.

    Raises:
        click.UsageError: it cannot listen there.
    """
    if port is None:
        yield None
        return
    try:
        endpoint = _Endpoint((address, port), server)
    except (OSError, OverflowError) as exc:
        raise click.UsageError(f"--health: it cannot listen on {address}, port {port}: {exc}") from exc
    listener = threading.Thread(target=endpoint.serve_forever, args=(0.2,), name="msgbus-health", daemon=True)
    listener.start()
    try:
        host = f"[{address}]" if ":" in address else address
        yield f"http://{host}:{endpoint.server_address[1]}"
    finally:
        endpoint.shutdown()
        endpoint.server_close()
