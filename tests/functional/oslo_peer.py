"""A service of oslo.messaging in a process of its own, over any driver: ``oslo_peer.py WORLD ROLE URL TOPIC JOURNAL``.

WORLD is threads or eventlet. ROLE is server, which serves requests and notifications until its standard input ends, or
client, which calls, casts and notifies in many ways and prints what it found.
"""
# ruff: noqa: E402 - eventlet replaces threads before anything else is imported

import sys

WORLD, ROLE, URL, TOPIC, JOURNAL = sys.argv[1:]
if WORLD == "eventlet":
    import eventlet

    eventlet.monkey_patch()

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import oslo_messaging
from oslo_config import cfg

TIMEOUT = 30


def note(text: str) -> None:
    """Write a line down, in one step."""
    with open(JOURNAL, "a") as journal:
        journal.write(f"{text}\n")


class NotFound(Exception):
    """Of a module that the client does not know."""


class Endpoint:
    """What the server serves."""

    target = oslo_messaging.Target(version="1.3")

    def __init__(self) -> None:
        self._released = threading.Event()

    def echo(self, ctxt: dict[str, Any], value: Any) -> Any:
        """Return the value and the caller's user."""
        return {"value": value, "user": ctxt.get("user")}

    def note(self, _ctxt: dict[str, Any], text: str) -> None:
        """Write a line down."""
        note(text)

    def fail(self, _ctxt: dict[str, Any], known: bool) -> None:
        """Raise."""
        raise ValueError("no such thing") if known else NotFound("no such thing")

    def odd(self, _ctxt: dict[str, Any]) -> Any:
        """Return what only Python's own JSON writes."""
        return [float("nan"), float("inf"), 10**30]

    def wait(self, _ctxt: dict[str, Any]) -> str:
        """Return once somebody has called `release`."""
        return "released" if self._released.wait(TIMEOUT) else "not released"

    def release(self, _ctxt: dict[str, Any]) -> None:
        """End `wait`."""
        self._released.set()

    def slow(self, _ctxt: dict[str, Any], seconds: float) -> str:
        """Take a while."""
        time.sleep(seconds)
        return "done"

    def info(self, _ctxt: Any, _publisher: str, event_type: str, payload: Any, _metadata: Any) -> None:
        """Write a notification down."""
        note(f"info {event_type} {payload}")

    def error(self, _ctxt: Any, _publisher: str, event_type: str, payload: Any, _metadata: Any) -> None:
        """Write a notification down."""
        note(f"error {event_type} {payload}")


def serve() -> None:
    """Serve until standard input ends."""
    oslo_messaging.RPCDispatcher([], None)  # It registers that option.
    cfg.CONF.set_override("rpc_ping_enabled", True)
    endpoint = Endpoint()
    transport = oslo_messaging.get_rpc_transport(cfg.CONF, URL)
    target = oslo_messaging.Target(topic=TOPIC, server="host.example")
    server = oslo_messaging.get_rpc_server(transport, target, [endpoint])
    server.start()
    notifications = oslo_messaging.get_notification_transport(cfg.CONF, URL)
    targets = [oslo_messaging.Target(topic=f"{TOPIC}-notifications")]
    listener = oslo_messaging.get_notification_listener(notifications, targets, [endpoint])
    listener.start()
    print("ready", flush=True)
    wait_for_end()
    for one in (server, listener):
        one.stop()
        one.wait()
    for made in (transport, notifications):
        made.cleanup()


def wait_for_end() -> None:
    """Return when standard input has ended. Other green threads run meanwhile."""
    if WORLD == "eventlet":
        eventlet.tpool.execute(os.read, 0, 1)
    else:
        os.read(0, 1)


def ask() -> None:
    """Call, cast and notify in every way, and print the results."""
    transport = oslo_messaging.get_rpc_transport(cfg.CONF, URL)
    client = oslo_messaging.get_rpc_client(
        transport, oslo_messaging.Target(topic=TOPIC, version="1.1"), timeout=TIMEOUT
    )
    found: dict[str, Any] = {}
    found["call"] = client.call({"user": "u"}, "echo", value={"a": [1, "ü", None]})
    found["to server"] = client.prepare(server="host.example").call({"user": "u"}, "echo", value=2)
    found["to topic and host"] = client.prepare(topic=f"{TOPIC}.host.example").call({"user": "u"}, "echo", value=3)
    found["odd"] = repr(client.call({}, "odd"))
    found["ping"] = client.prepare(version="1.0").call({}, "oslo_rpc_server_ping")
    for method, arguments in (("fail", {"known": True}), ("fail", {"known": False}), ("missing", {})):
        try:
            client.call({}, method, **arguments)
        except oslo_messaging.RemoteError as exc:
            found[f"{method} {arguments}"] = f"RemoteError {exc.exc_type}"
        except ValueError as exc:
            found[f"{method} {arguments}"] = f"ValueError {str(exc).splitlines()[0]}"
    with ThreadPoolExecutor(60) as pool:  # Of green threads, under eventlet.
        waiting = pool.submit(client.call, {}, "wait")
        answers = pool.map(lambda value: client.call({}, "echo", value=value)["value"], range(200))
        found["concurrent"] = list(answers) == list(range(200))
        client.call({}, "release")
        found["waited"] = waiting.result()
    found["monitored"] = client.prepare(call_monitor_timeout=2).call({}, "slow", seconds=3)
    try:
        client.prepare(topic=f"{TOPIC}-of-nobody", timeout=1).call({}, "echo", value=1)
    except oslo_messaging.MessagingTimeout:
        found["nobody"] = "timeout"
    client.cast({}, "note", text="cast")
    client.prepare(fanout=True).cast({}, "note", text="fanout")
    client.prepare(server="host.example").cast({}, "note", text="cast to server")
    notify()
    print(json.dumps(found), flush=True)
    transport.cleanup()


def notify() -> None:
    """Notify in both versions, with two priorities, and on a topic that nobody reads."""
    transport = oslo_messaging.get_notification_transport(cfg.CONF, URL)
    for driver in ("messaging", "messagingv2"):
        notifier = oslo_messaging.Notifier(transport, "p", driver=driver, topics=[f"{TOPIC}-notifications"])
        notifier.info({}, driver, 1)
        notifier.error({}, driver, 2)
    notifier = oslo_messaging.Notifier(transport, "p", driver="messagingv2", topics=[f"{TOPIC}-unread"])
    for number in range(5):
        notifier.info({}, "unread", number)
    transport.cleanup()


if __name__ == "__main__":
    cfg.CONF([], default_config_files=[])
    if ROLE == "server":
        serve()
    else:
        ask()
