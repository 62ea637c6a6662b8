"""A stock oslo.messaging peer, in a process of its own: ``python stock_peer.py server|client RABBIT_URL TOPIC [FILE]``.

Or ``python stock_peer.py both RABBIT_URL EXCHANGE TOPIC FILE [CONFIG]``: it serves, and does what standard input says,
a line of JSON at a time: verb, server (or null), method, arguments. For each it prints a line with the result, or the
error.

It knows nothing of msgbus. Its warnings about eventlet are its own affair, and its tracing needs the global CONF.
"""

import json
import sys
import threading
from pathlib import Path
from typing import Any

import oslo_messaging
from oslo_config import cfg


class Endpoint:
    """What the stock server serves."""

    target = oslo_messaging.Target(version="1.3")

    def __init__(self, journal: Path) -> None:
        self._journal = journal

    def echo(self, ctxt: dict[str, Any], value: Any) -> Any:
        """Return the value and the caller's context."""
        return {"value": value, "user": ctxt.get("user")}

    def note(self, _ctxt: dict[str, Any], text: str) -> None:
        """Write a line down."""
        with self._journal.open("a") as journal:
            journal.write(f"{text}\n")

    def fail(self, _ctxt: dict[str, Any]) -> None:
        """Raise."""
        raise ValueError("no such thing")

    def odd(self, _ctxt: dict[str, Any]) -> Any:
        """Return what only Python's own JSON writes."""
        return [float("nan"), float("inf"), float("-inf"), "\ud800", 10**30]

    def count(self, _ctxt: dict[str, Any], value: Any) -> int:
        """Raise for a value that no int can be made of."""
        return int(value)


def serve(transport: Any, topic: str, journal: Path) -> None:
    """Serve until standard input ends."""
    target = oslo_messaging.Target(topic=topic, server="stock")
    server = oslo_messaging.get_rpc_server(transport, target, [Endpoint(journal)], executor="threading")
    server.start()
    print("ready", flush=True)
    sys.stdin.read()
    server.stop()
    server.wait()


def ask(transport: Any, topic: str) -> None:
    """Call and cast in every way that the stock client knows, and print the results."""
    client = oslo_messaging.get_rpc_client(transport, oslo_messaging.Target(topic=topic, version="1.1"), timeout=20)
    found: dict[str, Any] = {}
    found["call"] = client.call({"user": "u"}, "echo", value={"a": [1, "ü", None]})
    found["to server"] = client.prepare(server="ours").call({"user": "u"}, "echo", value=2)
    try:
        client.call({}, "fail")
    except ValueError as exc:
        found["error"] = str(exc).splitlines()[0]
    try:
        client.call({}, "missing")
    except oslo_messaging.RemoteError as exc:
        found["missing"] = exc.exc_type
    found["odd"] = client.call({}, "kind", value=float("inf"))
    try:
        client.call({}, "echo", value=float("nan"))
    except oslo_messaging.RemoteError as exc:
        found["odd result"] = exc.exc_type
    try:
        client.call({}, "rich")
    except oslo_messaging.RemoteError as exc:
        found["rich"] = [exc.exc_type, exc.value]
    monitored = client.prepare(call_monitor_timeout=2)
    found["monitored"] = monitored.call({}, "slow", seconds=4)
    client.cast({}, "note", text="cast")
    client.prepare(fanout=True).cast({}, "note", text="fanout")
    client.prepare(server="ours").cast({}, "note", text="cast to server")
    print(json.dumps(found), flush=True)


def do(client: Any, verb: str, server: str | None, method: str, arguments: dict[str, Any]) -> Any:
    """Call, cast or fanout."""
    if verb == "fanout":
        return client.prepare(fanout=True).cast({}, method, **arguments)
    prepared = client.prepare() if server is None else client.prepare(server=server)
    return getattr(prepared, verb)({}, method, **arguments)


def obey(transport: Any, exchange: str, topic: str, journal: Path) -> None:
    """Serve, and do what standard input says, until it ends."""
    target = oslo_messaging.Target(exchange=exchange, topic=topic, server="stock")
    server = oslo_messaging.get_rpc_server(transport, target, [Endpoint(journal)], executor="threading")
    server.start()
    client = oslo_messaging.get_rpc_client(transport, oslo_messaging.Target(exchange=exchange, topic=topic), timeout=20)
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            result = {"result": do(client, *json.loads(line))}
        except Exception as exc:
            result = {"error": f"{type(exc).__name__}: {exc}"}
        print(json.dumps(result), flush=True)
    server.stop()
    server.wait()


def main() -> None:
    """See the module's text."""
    role, url, topic, *rest = sys.argv[1:]
    cfg.CONF([], default_config_files=rest[2:])
    transport = oslo_messaging.get_rpc_transport(cfg.CONF, url)
    if role == "both":
        obey(transport, topic, rest[0], Path(rest[1]))
    elif role == "server":
        serve(transport, topic, Path(rest[0]))
    else:
        ask(transport, topic)
    transport.cleanup()
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join(5)


if __name__ == "__main__":
    main()
