"""Calls and casts from several clients to several servers, and a record of what became of each."""

from __future__ import annotations

import collections
import itertools
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from oslo_config import cfg

import msgbus


class Done(NamedTuple):
    """One request that is over for its sender, with times in seconds of `time.monotonic`."""

    number: int
    verb: str
    client: int
    began: float
    ended: float
    error: BaseException | None


class _Endpoint:
    def __init__(self, load: Load, server: str) -> None:
        self._load = load
        self._server = server

    def work(self, _ctxt: object, number: int) -> int:
        """Note that it ran."""
        with self._load.lock:
            self._load.ran[number].append(self._server)
        return number


class Load:
    """Sends calls and casts from its start to its end, and knows what became of them.

    Attributes:
        done: the requests that are over for their senders.
        ran: number of a request -> the servers that ran it, as often as they did.
        timeout: seconds that a request may take.
    """

    def __init__(
        self,
        urls: Sequence[str],
        topic: str,
        delivery: str,
        *,
        clients: int = 2,
        servers: int = 3,
        threads: int = 4,
        timeout: float = 30.0,
        pause: float = 0.02,
    ) -> None:
        """Keep what is needed; nothing runs yet.

        Args:
            urls: transport URLs, which servers and clients take in turn.
            topic: where the requests go.
            delivery: the policy of all requests.
            clients: how many clients, each with a transport of its own.
            servers: how many servers, likewise.
            threads: of each client, that send.
            timeout: seconds that a request may take.
            pause: seconds between two requests of a thread.
        """
        self.done: list[Done] = []
        self.ran: collections.defaultdict[int, list[str]] = collections.defaultdict(list)
        self.lock = threading.Lock()
        self.timeout = timeout
        self._topic = topic
        self._delivery = delivery
        self._pause = pause
        self._numbers = itertools.count()
        self._stop = threading.Event()
        self._server_transports = [_transport(urls[i % len(urls)], timeout) for i in range(servers)]
        self._client_transports = [_transport(urls[(i + 1) % len(urls)], timeout) for i in range(clients)]
        self._servers = [
            msgbus.get_rpc_server(transport, msgbus.Target(topic=topic, server=f"s{i}"), [_Endpoint(self, f"s{i}")])
            for i, transport in enumerate(self._server_transports)
        ]
        self._threads = [
            threading.Thread(target=self._send, args=(at,), daemon=True)
            for at in range(clients)
            for _ in range(threads)
        ]

    def start(self) -> None:
        """Start the servers, then the clients; return when each client has had an answer."""
        for server in self._servers:
            server.start(60)
        for thread in self._threads:
            thread.start()
        self.wait_for_calls(60)

    def wait_for_calls(self, seconds: float) -> float:
        """Wait until each client has had an answer to a call that it begins from now on.

        Returns:
            how many seconds that took.

        Raises:
            AssertionError: it takes longer than `seconds`.
        """
        began = time.monotonic()
        clients = set(range(len(self._client_transports)))
        while True:
            with self.lock:
                answered = {
                    done.client
                    for done in reversed(self.done)
                    if done.began >= began and done.verb == "call" and done.error is None
                }
            if answered == clients:
                return time.monotonic() - began
            assert time.monotonic() < began + seconds, f"no call of clients {clients - answered} in {seconds} s"
            time.sleep(0.02)

    def _send(self, at: int) -> None:
        target = msgbus.Target(topic=self._topic)
        # Without a timeout of its own: what was cast does not expire.
        client = msgbus.get_rpc_client(self._client_transports[at], target, delivery=self._delivery)
        while not self._stop.wait(self._pause):
            number = next(self._numbers)
            verb = "cast" if number % 2 else "call"
            began, error = time.monotonic(), None
            try:
                getattr(client, verb)({}, "work", number=number)
            except Exception as exc:
                error = exc
            with self.lock:
                self.done.append(Done(number, verb, at, began, time.monotonic(), error))

    def finish(self, seconds: float = 30.0) -> None:
        """Send nothing more, wait for what is under way, and for so long for what was cast to run."""
        self._stop.set()
        for thread in self._threads:
            thread.join(self.timeout + 30)
            assert not thread.is_alive(), "a request does not end"
        end = time.monotonic() + seconds
        while self.lost and time.monotonic() < end:
            time.sleep(0.1)

    def close(self) -> None:
        """Close everything."""
        self._stop.set()
        for server in self._servers:
            server.stop()
        for transport in (*self._client_transports, *self._server_transports):
            transport.cleanup()

    # What became of them

    @property
    def failed(self) -> list[Done]:
        """What raised."""
        with self.lock:
            return [done for done in self.done if done.error is not None]

    @property
    def lost(self) -> list[Done]:
        """Requests that were reported as done or delivered, and never ran."""
        with self.lock:
            return [done for done in self.done if done.error is None and not self.ran.get(done.number)]

    @property
    def twice(self) -> dict[int, list[str]]:
        """What ran more than once, and where."""
        with self.lock:
            return {number: servers for number, servers in self.ran.items() if len(servers) > 1}

    @property
    def late(self) -> list[Done]:
        """What took its sender more than a second longer than its timeout."""
        with self.lock:
            return [done for done in self.done if done.ended - done.began > self.timeout + 1]

    def __str__(self) -> str:
        kinds = collections.Counter(
            f"{done.verb}: {type(done.error).__name__}: {done.error}"[:400] for done in self.failed
        )
        texts = "".join(f"\n  {count} x {text}" for text, count in kinds.most_common(12))
        return (
            f"{len(self.done)} requests: {len(self.failed)} failed, {len(self.lost)} lost, {len(self.twice)} twice, "
            f"{len(self.late)} late{texts}"
        )


def _transport(url: str, timeout: float) -> msgbus.Transport:
    conf: Any = cfg.ConfigOpts()
    conf([], default_config_files=[])
    transport = msgbus.get_rpc_transport(conf, url)
    conf.set_override("rpc_response_timeout", timeout)
    return transport
