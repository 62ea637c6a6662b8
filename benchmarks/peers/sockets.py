"""Where libraries without a broker listen: Unix sockets beside those of msgbus."""

from __future__ import annotations

import pathlib
import tempfile
import time
from urllib.parse import urlsplit

from benchmarks.workloads import TIMEOUT


def path_of(url: str, topic: str) -> str:
    """The path of a topic's socket, beside the folder that a URL of the zmq driver names."""
    folder = urlsplit(url).path
    return str((pathlib.Path(folder).parent if folder else pathlib.Path(tempfile.gettempdir())) / topic)


def wait_for(path: str) -> None:
    """Return when somebody has made the socket.

    Raises:
        TimeoutError: nobody did.
    """
    end = time.monotonic() + TIMEOUT
    while not pathlib.Path(path).exists():
        if time.monotonic() > end:
            raise TimeoutError(f"nobody listens at {path}")
        time.sleep(0.01)


def remove(url: str, topic: str) -> None:
    """Remove the sockets of a topic, which stay when their processes are killed."""
    path = pathlib.Path(path_of(url, topic))
    for file in path.parent.glob(f"{path.name}*"):
        if file.is_socket():
            file.unlink(missing_ok=True)
