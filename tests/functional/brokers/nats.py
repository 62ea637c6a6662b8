"""A NATS server of the tests' own, with JetStream, on loopback, with ports and a store of its own."""

from __future__ import annotations

import json
import pathlib
import shutil
import signal
import socket
import urllib.request
from typing import Any, Final

from tests.functional.brokers.processes import (
    BrokerFailed,
    BrokerMissing,
    ProcessTree,
    free_ports,
    poll,
    send_signal,
)

__all__ = ["MAX_PAYLOAD", "BrokerFailed", "BrokerMissing", "Nats"]

MAX_PAYLOAD: Final = 8 * 1024 * 1024
_PROGRAM: Final = "nats-server"
_SECONDS: Final = 30.0


class Nats:
    """One NATS server; nothing runs until ``start()``.

    ``base`` is a folder that belongs to this server alone. Raises ``BrokerMissing`` if this machine does not have
    nats-server. Ports stay the same over restarts, data until ``close()``.
    """

    def __init__(self, base: pathlib.Path) -> None:
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        program = shutil.which(_PROGRAM, path=path)
        if program is None:
            raise BrokerMissing("nats-server is not installed: run tests/functional/brokers/install nats")
        self.base = base
        self.port, self._monitor = free_ports(2)
        self._tree: ProcessTree | None = None
        self._environment = {"PATH": path, "HOME": str(base)}
        base.mkdir(parents=True, exist_ok=True)
        self._log = base / "output"
        config = base / "nats.conf"
        config.write_text(
            f'listen: "127.0.0.1:{self.port}"\n'
            f'http: "127.0.0.1:{self._monitor}"\n'
            f"max_payload: {MAX_PAYLOAD}\n"
            f'jetstream {{ store_dir: "{base / "store"}" }}\n'
        )
        self._argv = [program, "-c", str(config)]

    @property
    def url(self) -> str:
        """The transport URL of the server."""
        return f"nats://127.0.0.1:{self.port}/"

    def alive(self) -> bool:
        """Whether the server's process runs (it may be paused)."""
        return self._tree is not None and self._tree.alive()

    def start(self) -> None:
        """Start it, and return when JetStream serves; raise ``BrokerFailed`` if it does not within 30 s."""
        if self.alive():
            raise RuntimeError("already started")
        self._tree = ProcessTree(self._argv, self._environment, self._log)
        try:
            poll(self._ready, _SECONDS, "the start of nats-server")
        except (TimeoutError, BrokerFailed) as error:
            self.kill()
            raise BrokerFailed(f"nats-server: {error}\n{self._log_tail()}") from error

    def _ready(self) -> bool:
        if not self.alive():
            raise BrokerFailed("it ended while starting")
        try:
            with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
                return connection.recv(4) == b"INFO"
        except OSError:
            return False

    def stop(self) -> None:
        """Shut it down cleanly, and return when it has ended; raise ``BrokerFailed`` if it does not within 30 s."""
        if self._tree is None or not self._tree.alive():
            return
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGTERM)
        if not self._tree.wait(_SECONDS):
            self.kill()
            raise BrokerFailed(f"nats-server did not stop in {_SECONDS} s\n{self._log_tail()}")

    def kill(self) -> None:
        """SIGKILL it, and return when it has ended."""
        if self._tree is not None:
            self._tree.kill()

    def pause(self) -> None:
        """Freeze it (SIGSTOP): connections stay open, and nothing answers until ``resume()``."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """Kill it and remove its data."""
        self.kill()
        shutil.rmtree(self.base, ignore_errors=True)

    def _signal(self, number: signal.Signals) -> None:
        found = self._tree.pids(_PROGRAM) if self._tree is not None else []
        if not found:
            raise BrokerFailed(f"nats-server does not run\n{self._log_tail()}")
        send_signal(found[0], number)

    def monitor(self, path: str) -> Any:
        """What the server says of itself: ``connz``, ``jsz`` and the like."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._monitor}/{path}", timeout=10) as answer:
            return json.load(answer)

    def subscriptions(self) -> list[str]:
        """The subjects to which clients listen."""
        clients = self.monitor("connz?subs=1")["connections"]
        return [subject for client in clients for subject in client.get("subscriptions_list", ())]

    def consumers(self) -> list[tuple[str, str]]:
        """The stream and the name of each consumer."""
        accounts = self.monitor("jsz?consumers=1&streams=1").get("account_details") or []
        streams = [stream for account in accounts for stream in account.get("stream_detail") or []]
        return [(at["name"], consumer["name"]) for at in streams for consumer in at.get("consumer_detail") or []]

    def connections(self) -> int:
        """How many clients are connected."""
        return int(self.monitor("connz")["num_connections"])

    def _log_tail(self) -> str:
        try:
            return "\n".join(self._log.read_text(errors="replace").splitlines()[-100:])
        except OSError:
            return ""
