"""Faults between the nodes of the zmq driver."""

from __future__ import annotations

import os
import pathlib
import socket
import stat


def cut_connections(run_dir: pathlib.Path) -> None:
    """Break every connection over a socket in the directory that has an end in this process, as a network would."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                continue
            with socket.socket(fileno=os.dup(fd)) as connection:
                ends = (connection.getsockname(), connection.getpeername())
                if str(run_dir) in map(os.path.dirname, ends):
                    connection.shutdown(socket.SHUT_RDWR)
        except (OSError, TypeError):
            continue  # It has been closed meanwhile, is not connected, or of another kind.
