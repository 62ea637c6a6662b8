"""Where nodes of the zmq driver meet, by each matchmaker: what a server's and a client's transport URL is there."""

from __future__ import annotations

import itertools
import json
import pathlib
from abc import ABC, abstractmethod
from typing import Any

from msgbus import Transport, get_rpc_transport
from msgbus.conformance.endpoint import Journal, ServerSpec, make_conf
from msgbus.conformance.processes import ProcessServer
from msgbus.drivers.base import Driver
from tests.functional.brokers.processes import free_ports
from tests.functional.brokers.redis import Redis
from tests.functional.zmq_faults import cut_connections, cut_tcp

SERVERS = ("s1", "s2", "s3")


class Meeting(ABC):
    """A place, and all that was opened there."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.journal = Journal(str(folder))
        self._opened: list[ProcessServer | Transport] = []

    @abstractmethod
    def server_url(self, name: str) -> str:
        """The URL of one of `SERVERS` of the topic ``foo``."""

    @abstractmethod
    def client_url(self) -> str:
        """The URL of a client."""

    @abstractmethod
    def cut(self) -> None:
        """Break every connection between nodes that has an end in this process."""

    def serve(self, *names: str, more: str = "", **options: Any) -> list[ProcessServer]:
        """Servers in processes of their own, ready."""
        made = []
        for name in names:
            spec = ServerSpec(self.server_url(name) + more, "foo", name, str(self.folder), None, options)
            made.append(ProcessServer(spec))
            self._opened.append(made[-1])
        for server in made:
            server.ready()
        return made

    def node(self, name: str = "", more: str = "") -> Driver:
        """The driver of a server, or of a client, in this process."""
        return self.transport(name, more).driver

    def transport(self, name: str = "", more: str = "", **options: Any) -> Transport:
        """Likewise its transport."""
        return self.open((self.server_url(name) if name else self.client_url()) + more, **options)

    def open(self, url: str, **options: Any) -> Transport:
        """A transport of that URL, which is closed at the end."""
        made = get_rpc_transport(make_conf(options), url)
        self._opened.append(made)
        return made

    def close(self) -> None:
        """Close all."""
        for opened in self._opened:
            if isinstance(opened, Transport):
                opened.cleanup()
            else:
                opened.close()


class LocalMeeting(Meeting):
    """A directory."""

    def server_url(self, name: str) -> str:
        return f"zmq://{self.folder}/run?matchmaker=local"

    def client_url(self) -> str:
        return self.server_url("")

    def cut(self) -> None:
        cut_connections(self.folder / "run")


class FileMeeting(Meeting):
    """A file, which names all servers, whether they are there or not."""

    def __init__(self, folder: pathlib.Path) -> None:
        super().__init__(folder)
        self.path = folder / "servers.json"
        self.addresses = {name: f"127.0.0.1:{port}" for name, port in zip(SERVERS, free_ports(3), strict=True)}
        self.write({"foo": dict(self.addresses)})

    def write(self, topics: dict[str, Any]) -> None:
        """Replace the file, as an editor does."""
        aside = self.folder / "aside"
        aside.write_text(json.dumps(topics))
        aside.rename(self.path)

    def server_url(self, name: str) -> str:
        return f"{self.client_url()}&listen=tcp://{self.addresses[name]}"

    def client_url(self) -> str:
        return f"zmq://?matchmaker=file&matchmaker_file={self.path}"

    def cut(self) -> None:
        cut_tcp()


class RedisMeeting(Meeting):
    """A Redis. Each node has a run directory of its own, as if it were on another host."""

    def __init__(self, folder: pathlib.Path, redis: Redis) -> None:
        super().__init__(folder)
        self.redis = redis
        self._numbers = itertools.count()

    def server_url(self, name: str) -> str:
        return f"{self.client_url()}&listen=tcp://127.0.0.1:*"

    def client_url(self) -> str:
        run_dir = self.folder / f"host{next(self._numbers)}"
        return f"zmq://{run_dir}?matchmaker=redis&redis_url={self.redis.url}"

    def cut(self) -> None:
        cut_tcp(besides=self.redis.port)
