"""A nats-server of the tests' own: the program has to be in the PATH."""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest

MAX_PAYLOAD = 8 * 1024 * 1024


class Server:
    """nats-server with JetStream, on a port and with a store of its own."""

    def __init__(self, folder: pathlib.Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"nats://127.0.0.1:{self.port}/"
        self.store = folder / "store"
        self._config = folder / "nats.conf"
        self._config.write_text(
            f'listen: "127.0.0.1:{self.port}"\nmax_payload: {MAX_PAYLOAD}\njetstream {{ store_dir: "{self.store}" }}\n'
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when it serves."""
        self._process = subprocess.Popen(["nats-server", "-c", self._config], stderr=subprocess.DEVNULL)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                    if connection.recv(4) == b"INFO":
                        return
            except OSError:
                time.sleep(0.02)
        raise TimeoutError("nats-server does not serve")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Return when it is gone."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(20)
            self._process = None

    def send_signal(self, number: signal.Signals) -> None:
        """Have it stand still (SIGSTOP), or go on (SIGCONT)."""
        assert self._process is not None
        self._process.send_signal(number)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that runs."""
    if shutil.which("nats-server") is None:
        if os.environ.get("CI"):  # There it has to be tested.
            pytest.fail("nats-server is not installed")
        pytest.skip("nats-server is not installed")
    made = Server(tmp_path_factory.mktemp("nats"))
    try:
        made.start()
        yield made
    finally:
        made.stop(signal.SIGKILL)
