"""A client and server that knows oslo.messaging and nothing else: ``python -m tests.openstack.peer TRANSPORT_URL``.

Orders come as lines of JSON on standard input, and each is answered by a line of JSON on standard output. An order has
the name of a method of `Peer` as "do", and its arguments. A target is given as the arguments of
`oslo_messaging.Target`.
"""

from __future__ import annotations

import decimal
import json
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import oslo_messaging
from oslo_config import cfg

from tests.openstack import errors
from tests.openstack.peer_load import Load, calls_per_second

Target = dict[str, Any]
"""Arguments of `oslo_messaging.Target`."""


class Endpoint:
    """What a server serves; `notes` is where casts are written down, a line each."""

    target = oslo_messaging.Target(version="1.3")

    def __init__(self, server: str, notes: Path) -> None:
        self._server = server
        self._notes = notes
        self._lock = threading.Lock()

    def echo(self, ctxt: dict[str, Any], value: Any, seconds: float = 0.0) -> Any:
        """Return the value after some time, with who called and who serves."""
        time.sleep(seconds)
        return {"value": value, "user": ctxt.get("user"), "server": self._server}

    def note(self, _ctxt: dict[str, Any], text: str, seconds: float = 0.0) -> None:
        """Write a line down after some time."""
        time.sleep(seconds)
        self._write_down(text)

    def hang(self, _ctxt: dict[str, Any], text: str) -> None:
        """Write a line down, and go on for longer than any test."""
        self._write_down(text)
        time.sleep(3600)

    def _write_down(self, text: str) -> None:
        with self._lock, self._notes.open("a") as notes:
            notes.write(f"{text} {self._server}\n")

    def raise_known(self, _ctxt: dict[str, Any]) -> None:
        """Raise what the client knows."""
        raise errors.OutOfPaper("the printer in the hall", 3)

    def raise_builtin(self, _ctxt: dict[str, Any]) -> None:
        """Raise what Python brings along."""
        raise ValueError("no such page")

    def raise_unknown(self, _ctxt: dict[str, Any]) -> None:
        """Raise what no client has allowed."""
        raise decimal.InvalidOperation("not for you")


class Admin:
    """The same in a namespace and version of its own."""

    target = oslo_messaging.Target(namespace="admin", version="2.1")

    def where(self, _ctxt: dict[str, Any]) -> str:
        """Return what this is."""
        return "admin 2.1"


class Listener:
    """Takes notifications in, and gives back the first of each event as often as it is asked to."""

    def __init__(self, refusals: int) -> None:
        self.events: list[list[Any]] = []
        self._refusals = refusals
        self._seen: dict[str, int] = {}

    def _take(self, priority: str, ctxt: Any, publisher: str, event: str, payload: Any) -> Any:
        self.events.append([priority, publisher, event, payload, ctxt.get("user")])
        self._seen[event] = self._seen.get(event, 0) + 1
        refused = self._seen[event] <= self._refusals
        return oslo_messaging.NotificationResult.REQUEUE if refused else oslo_messaging.NotificationResult.HANDLED

    def info(self, ctxt: Any, publisher_id: str, event_type: str, payload: Any, _metadata: Any) -> Any:
        """A notification of priority info."""
        return self._take("info", ctxt, publisher_id, event_type, payload)

    def error(self, ctxt: Any, publisher_id: str, event_type: str, payload: Any, _metadata: Any) -> Any:
        """One of priority error."""
        return self._take("error", ctxt, publisher_id, event_type, payload)


class NotifiedContext:
    """A context as services have them: what is not redacted travels with a notification."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def redacted_copy(self) -> NotifiedContext:
        """Itself: there is nothing secret in it."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """Its values."""
        return self._values


class Peer:
    """Carries out orders. What it opens stays open until `stop`, or the end of the process."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._servers: list[Any] = []
        self._listeners: list[Listener] = []
        self._transports: dict[str, Any] = {}

    def _rpc(self) -> Any:
        if "rpc" not in self._transports:
            self._transports["rpc"] = oslo_messaging.get_rpc_transport(cfg.CONF, self._url, [errors.__name__])
        return self._transports["rpc"]

    def _notifications(self) -> Any:
        if "notifications" not in self._transports:
            made = oslo_messaging.get_notification_transport(cfg.CONF, self._url)
            self._transports["notifications"] = made
        return self._transports["notifications"]

    def _client(self, target: Target, at_least_once: bool = False, **options: Any) -> Any:
        sending = oslo_messaging.TransportOptions(at_least_once=True) if at_least_once else None
        return oslo_messaging.get_rpc_client(
            self._rpc(), oslo_messaging.Target(**target), transport_options=sending, **options
        )

    def serve(self, target: Target, notes: str, threads: int = 64) -> bool:
        """Begin to serve; `target` names a server."""
        endpoints = [Endpoint(target["server"], Path(notes)), Admin()]
        server = oslo_messaging.get_rpc_server(self._rpc(), oslo_messaging.Target(**target), endpoints)
        server.start(override_pool_size=threads)
        self._servers.append(server)
        return True

    def listen(self, topics: list[str], pool: str | None = None, refusals: int = 0) -> int:
        """Begin to listen to notifications. Returns the listener's number."""
        listener = Listener(refusals)
        targets = [oslo_messaging.Target(topic=topic) for topic in topics]
        server = oslo_messaging.get_notification_listener(
            self._notifications(), targets, [listener], allow_requeue=True, pool=pool
        )
        server.start()
        self._servers.append(server)
        self._listeners.append(listener)
        return len(self._listeners) - 1

    def events(self, listener: int) -> list[list[Any]]:
        """What a listener has taken in so far."""
        return self._listeners[listener].events

    def cut(self) -> int:
        """Break every connection of this process to others over ZeroMQ. Returns how many there were."""
        # Not at the top: a peer that is not asked for this imports msgbus only if oslo.messaging does.
        from tests.functional.zmq_faults import cut_connections

        return cut_connections(Path(urlsplit(self._url).path))

    def stop(self) -> bool:
        """End in good order, as a service does: take nothing more, finish what runs, and close the connections."""
        for server in self._servers:
            server.stop()
        for server in self._servers:
            server.wait()
        for transport in self._transports.values():
            transport.cleanup()
        self._servers, self._transports = [], {}
        return True

    def call(self, target: Target, method: str, args: dict[str, Any], **options: Any) -> Any:
        """Call: {"value": what it returns} or {"raised": the exception's class, ...}."""
        try:
            return {"value": self._client(target, **options).call({"user": "u"}, method, **args)}
        except Exception as exc:
            return {
                "raised": type(exc).__name__,
                "module": type(exc).__module__,
                "text": str(exc).splitlines()[0] if str(exc) else "",
                "args": exc.args if type(exc).__module__.startswith(errors.__name__) else (),
                "remote": getattr(exc, "exc_type", None),
            }

    def call_many(self, target: Target, count: int, **options: Any) -> int:
        """Call so many times at the same time, each with a value of its own; how many got their own value back."""
        client = self._client(target, **options)

        def is_right(number: int) -> bool:
            answer = client.call({"user": "u"}, "echo", value=number, seconds=0.1)
            return bool(answer["value"] == number)

        with ThreadPoolExecutor(count) as pool:
            return sum(pool.map(is_right, range(count)))

    def cast(self, target: Target, text: str, fanout: bool = False) -> bool:
        """Cast a line that is to be written down."""
        self._client(target).prepare(fanout=fanout).cast({"user": "u"}, "note", text=text)
        return True

    def notify(self, driver: str, topic: str, priority: str, event: str, payload: Any) -> bool:
        """Send a notification by "messaging" or "messagingv2"."""
        notifier = oslo_messaging.Notifier(self._notifications(), "publisher", driver=driver, topics=[topic])
        getattr(notifier, priority)(NotifiedContext({"user": "u"}), event, payload)
        return True

    def rate(self, target: Target, threads: int, seconds: float) -> float:
        """Calls in a second, made by so many threads for so long."""
        return calls_per_second(self._client(target, timeout=30), threads, seconds)

    def load(self, target: Target, seconds: float, **options: Any) -> dict[str, Any]:
        """Call and cast for so long: see `Load`."""
        load = Load(self._client(target, timeout=options.pop("timeout")), **options)
        return load.run(seconds)


def main() -> None:
    """See the module's text."""
    # Oslo's tracing needs this one. Nothing of this machine is read.
    cfg.CONF([], project="judged", default_config_files=[], default_config_dirs=[])
    peer = Peer(sys.argv[1])
    print("true", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(getattr(peer, order.pop("do"))(**order)), flush=True)
    os._exit(0)  # Whoever wants it to end in good order says so: a test that failed does not wait for that.


if __name__ == "__main__":
    main()
