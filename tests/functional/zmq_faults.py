"""Faults between the nodes of the zmq driver."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import stat
from collections.abc import Iterator

import msgspec

from msgbus.drivers.zmq.matchmakers.base import Entry


def _sockets() -> Iterator[socket.socket]:
    """Those that are open in this process, a copy of each."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # It has been closed meanwhile.
            copy = os.dup(fd)
            try:
                found = socket.socket(fileno=copy) if stat.S_ISSOCK(os.fstat(copy).st_mode) else None
            except OSError:
                found = None
            if found is None:
                os.close(copy)
                continue
            with found:
                yield found


def cut_connections(run_dir: pathlib.Path) -> int:
    """Break every connection over a socket in the directory that has an end in this process, as a network would.

    Returns:
        How many there were.
    """
    cut = 0
    for connection in _sockets():
        with contextlib.suppress(OSError, TypeError):  # It is not connected, or of another kind.
            ends = (connection.getsockname(), connection.getpeername())
            if str(run_dir) in map(os.path.dirname, ends):
                connection.shutdown(socket.SHUT_RDWR)
                cut += 1
    return cut


def cut_tcp(*, besides: int = 0) -> None:
    """Break every TCP connection on the loopback that has an end in this process, except those with a given port."""
    for connection in _sockets():
        if connection.family == socket.AF_INET:
            with contextlib.suppress(OSError):
                address, port = connection.getpeername()  # What listens has no peer; libzmq would abort.
                if address == "127.0.0.1" and port != besides:
                    connection.shutdown(socket.SHUT_RDWR)


def hide_sockets(run_dir: pathlib.Path) -> None:
    """Have all nodes in the directory found at their other endpoints alone, as nodes of another host would be."""
    for path in run_dir.glob("*.node"):
        entry = msgspec.msgpack.decode(path.read_bytes(), type=Entry)
        entry = msgspec.structs.replace(entry, endpoints=[e for e in entry.endpoints if not e.startswith("ipc:")])
        if entry.endpoints:
            (run_dir / f"{entry.node}.1000.node").write_bytes(msgspec.msgpack.encode(entry))
    (run_dir / "changes").write_bytes(os.urandom(8))
