"""Services of oslo.messaging whose message system is msgbus's one in memory."""

from __future__ import annotations

import queue
import threading
import warnings
from collections.abc import Callable
from typing import Any

from oslo_config import cfg

from tests.support import EVENT_TIMEOUT, new_url

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of libraries that oslo.messaging imports
    import oslo_messaging as oslo_messaging  # noqa: PLC0414 - for the tests
    from oslo_messaging import conffixture


def conf_of(text: str = "", folder: Any = None, **overrides: Any) -> cfg.ConfigOpts:
    """The configuration of a service, which has read one file, with all options of oslo.messaging."""
    files = []
    if text:
        path = folder / "service.conf"
        path.write_text(text)
        files = [str(path)]
    conf = cfg.ConfigOpts()
    conf([], project="service", default_config_files=files, default_config_dirs=[])
    conffixture.ConfFixture(conf)
    for name, value in overrides.items():
        conf.set_override(name, value)
    return conf


def new_oslo_url() -> str:
    """The transport URL of a bus in memory that no other test uses."""
    return f"msgbus+{new_url()}"


class Service:
    """Makes servers, clients, notifiers and listeners on one bus, and closes them."""

    def __init__(self) -> None:
        self.url = new_oslo_url()
        self.conf = conf_of()
        self._end: list[Callable[[], object]] = []

    def transport(self, *allowed_remote_exmods: str) -> Any:
        """A transport for RPC; each is like one in a process of its own."""
        made = oslo_messaging.get_rpc_transport(self.conf, self.url, list(allowed_remote_exmods))
        self._end.append(made.cleanup)
        return made

    def notification_transport(self) -> Any:
        made = oslo_messaging.get_notification_transport(self.conf, self.url)
        self._end.append(made.cleanup)
        return made

    def serve(self, endpoint: object, name: str = "s1", topic: str = "t") -> Any:
        """A server that runs."""
        target = oslo_messaging.Target(topic=topic, server=name)
        return self._start(oslo_messaging.get_rpc_server(self.transport(), target, [endpoint]))

    def listen(self, endpoint: object, *topics: str, **options: Any) -> Any:
        """A listener for notifications that runs; in batches, if `batch_size` or `batch_timeout` is among `options`."""
        make = oslo_messaging.get_notification_listener
        if "batch_size" in options or "batch_timeout" in options:
            make = oslo_messaging.get_batch_notification_listener
        targets = [oslo_messaging.Target(topic=topic) for topic in topics or ("n",)]
        return self._start(make(self.notification_transport(), targets, [endpoint], **options))

    def _start(self, server: Any) -> Any:
        server.start()
        self._end.append(lambda: (server.stop(), server.wait()))
        return server

    def client(self, *allowed_remote_exmods: str, topic: str = "t", **options: Any) -> Any:
        options.setdefault("timeout", EVENT_TIMEOUT)
        target = oslo_messaging.Target(topic=topic, server=options.pop("server", None))
        return oslo_messaging.get_rpc_client(self.transport(*allowed_remote_exmods), target, **options)

    def notifier(self, driver: str = "messagingv2", *topics: str) -> Any:
        return oslo_messaging.Notifier(
            self.notification_transport(), "publisher", driver=driver, topics=list(topics or ("n",))
        )

    def close(self) -> None:
        """Stop and close everything, the newest first."""
        while self._end:
            self._end.pop()()


class Endpoint:
    """Keeps what it was called with."""

    def __init__(self) -> None:
        self.notes: queue.Queue[Any] = queue.Queue()
        self.go_on = threading.Event()

    def echo(self, ctxt: dict[str, Any], value: Any) -> Any:
        return {"value": value, "ctxt": ctxt}

    def note(self, _ctxt: dict[str, Any], value: Any) -> None:
        self.notes.put(value)

    def fail(self, _ctxt: dict[str, Any]) -> None:
        raise ValueError("no such thing")

    def unwritable(self, _ctxt: dict[str, Any]) -> Any:
        value: list[Any] = []
        value.append(value)
        return value

    def wait(self, ctxt: dict[str, Any]) -> str:
        assert self.go_on.wait(EVENT_TIMEOUT)
        return "done"

    def taken(self) -> Any:
        """The next note."""
        return self.notes.get(timeout=EVENT_TIMEOUT)
