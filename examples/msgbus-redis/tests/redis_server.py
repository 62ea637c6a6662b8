"""A redis-server of the tests' own: the program has to be in the PATH."""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
import redis

PASSWORD = "s3cret"


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """redis-server, on a port and with data of its own.

    `lines` go into its configuration; in them PORT is that port, and OTHER a free one.
    """

    def __init__(self, folder: pathlib.Path, *lines: str) -> None:
        self.port = free_port()
        self.url = f"redis://:{PASSWORD}@127.0.0.1:{self.port}/"
        own = [f"dir {folder}", f"requirepass {PASSWORD}", 'save ""', "bind 127.0.0.1"]
        ports = [] if any(line.startswith("port ") for line in lines) else [f"port {self.port}"]
        aof = [] if any(line.startswith("appendonly ") for line in lines) else ["appendonly yes"]
        self._config = folder / "redis.conf"
        text = "\n".join([*own, *ports, *aof, *lines]) + "\n"
        self._config.write_text(text.replace("PORT", str(self.port)).replace("OTHER", str(free_port())))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def client(self) -> redis.Redis:
        """A client to look into it."""
        return redis.Redis(port=self.port, password=PASSWORD)

    def start(self) -> None:
        """Return when it serves."""
        self._process = subprocess.Popen(["redis-server", self._config], stdout=subprocess.DEVNULL)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1):
                    return
            except OSError:
                time.sleep(0.05)
        raise TimeoutError("redis-server does not answer")

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Return when it has ended."""
        if self._process is not None:
            self.send_signal(number)
            self._process.wait(10)
            self._process = None


@pytest.fixture
def new_server(tmp_path: pathlib.Path) -> Iterator[Callable[..., Server]]:
    """Starts servers with lines of configuration, which are stopped at the end."""
    if shutil.which("redis-server") is None:
        if os.environ.get("CI"):  # There it has to be tested.
            pytest.fail("there is no redis-server")
        pytest.skip("there is no redis-server")
    started: list[Server] = []

    def start(*lines: str) -> Server:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        started.append(Server(folder, *lines))
        started[-1].start()
        return started[-1]

    yield start
    for server in started:
        server.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that is running; a test that stops it leaves it running again."""
    if shutil.which("redis-server") is None:
        if os.environ.get("CI"):  # There it has to be tested.
            pytest.fail("there is no redis-server")
        pytest.skip("there is no redis-server")
    made = Server(tmp_path_factory.mktemp("redis"))
    made.start()
    yield made
    made.stop(signal.SIGKILL)
