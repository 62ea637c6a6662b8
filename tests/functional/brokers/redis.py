"""A Redis of the tests' own, with a port and data of its own.

Nodes of the zmq driver find each other there, and it is the broker of examples/msgbus-redis.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
import socket
from collections.abc import Sequence
from typing import Final

import redis

from tests.functional.brokers.processes import (
    BrokerFailed,
    BrokerMissing,
    ProcessTree,
    free_ports,
    poll,
    send_signal,
)

__all__ = ["BrokerFailed", "BrokerMissing", "Redis"]

_SERVER: Final = "redis-server"
_START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 15.0


class Redis:
    """One Redis; nothing runs until ``start()``. It keeps nothing over a restart, unless ``keeps`` says so.

    ``base`` is a folder that belongs to it alone; it is made if need be. With ``password`` it lets nobody in without.
    ``host`` is the address that it listens at, and ``command`` runs it on another host, such as a network namespace.
    Raises ``BrokerMissing`` if this machine has none. The port stays the same over restarts.
    """

    def __init__(
        self,
        base: pathlib.Path,
        *,
        password: str = "",
        host: str = "127.0.0.1",
        command: Sequence[str] = (),
        keeps: bool = False,
    ) -> None:
        if shutil.which(_SERVER) is None:
            raise BrokerMissing(f"there is no {_SERVER}: run tests/functional/brokers/install redis")
        self.base = base
        self.host = host
        (self.port,) = free_ports(1)
        self._password = password
        self._command = command
        self._tree: ProcessTree | None = None
        base.mkdir(parents=True, exist_ok=True)
        lines = [f"bind {host}", f"port {self.port}", f"dir {base}", 'save ""', "protected-mode no", "daemonize no"]
        lines += [f"requirepass {password}"] if password else []
        lines += ["appendonly yes"] if keeps else []
        (base / "redis.conf").write_text("\n".join(lines) + "\n")

    @property
    def url(self) -> str:
        """Its URL."""
        user = f":{self._password}@" if self._password else ""
        return f"redis://{user}{self.host}:{self.port}/0"

    def alive(self) -> bool:
        """Whether its process runs (it may be paused)."""
        return self._tree is not None and self._tree.alive()

    def start(self) -> None:
        """Start it, and return when it answers; raise ``BrokerFailed`` if it does not within 30 s."""
        if self.alive():
            raise RuntimeError("already started")
        argv = [*self._command, _SERVER, str(self.base / "redis.conf")]
        self._tree = ProcessTree(argv, dict(os.environ), self.base / "output")
        try:
            poll(self._ready, _START_SECONDS, "the start of Redis")
        except (TimeoutError, BrokerFailed) as error:
            self.kill()
            raise BrokerFailed(f"Redis: {error}\n{self._log_tail()}") from error

    def _ready(self) -> bool:
        if not self.alive():
            raise BrokerFailed("it ended while starting")
        if self._command:  # It cannot be reached from here.
            return "Ready to accept connections" in self._log_tail()
        try:
            with socket.create_connection((self.host, self.port), 5) as connection:
                connection.settimeout(5)
                connection.sendall(b"PING\r\n")
                return connection.recv(7) in (b"+PONG\r\n", b"-NOAUTH")
        except OSError:
            return False

    def stop(self) -> None:
        """Shut it down cleanly, and return when it has ended; raise ``BrokerFailed`` if it does not within 15 s."""
        if self._tree is None or not self._tree.alive():
            return
        self.resume()
        self._signal(signal.SIGTERM)
        if not self._tree.wait(_STOP_SECONDS):
            self.kill()
            raise BrokerFailed(f"Redis did not stop in {_STOP_SECONDS} s\n{self._log_tail()}")

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

    def keys(self) -> set[str]:
        """What it holds at present."""
        with redis.Redis(host=self.host, port=self.port, password=self._password or None) as client:
            return {key.decode() for key in client.scan_iter()}

    def connections(self, name: str) -> int:
        """How many connections of that name are open."""
        with redis.Redis(host=self.host, port=self.port, password=self._password or None) as client:
            return sum(found["name"] == name for found in client.client_list())

    def _signal(self, number: signal.Signals) -> None:
        found = self._tree.pids(_SERVER) if self._tree is not None else []
        if not found:
            raise BrokerFailed(f"Redis does not run\n{self._log_tail()}")
        send_signal(found[0], number)

    def _log_tail(self) -> str:
        path = self.base / "output"
        return "\n".join(path.read_text(errors="replace").splitlines()[-100:]) if path.exists() else ""
