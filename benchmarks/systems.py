"""The message systems of a run: brokers that it starts on free ports and stops again, or those of given URLs."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import entry_points
from typing import Any, NamedTuple

from benchmarks import proc

_REDUCTIONS = "element(1, erlang:statistics(exact_reductions))."


class SystemMissing(Exception):
    """A message system cannot be had here; the text says why."""


class System(NamedTuple):
    """A message system that can be used.

    Attributes:
        url: of transports.
        broker: what the broker is, with its version; "" if there is none.
        pids: the broker's processes on this machine. Without them its CPU is not known.
        reductions: how much work RabbitMQ has done so far, in its own unit.
    """

    url: str
    broker: str
    pids: frozenset[int] = frozenset()
    reductions: Callable[[], int] | None = None


@contextlib.contextmanager
def running(name: str, url: str | None = None) -> Iterator[System]:
    """A message system while the block runs.

    Args:
        name: as in transport URLs.
        url: where one runs already; None starts one.

    Raises:
        SystemMissing: its broker or driver is not installed.
    """
    if name not in {entry.name for entry in entry_points(group="msgbus.drivers")}:
        raise SystemMissing(f"the driver {name} is not installed (see examples/msgbus-{name})")
    if url is not None:
        yield System(url, f"the broker of --url {name}://" if name not in ("zmq", "fake") else "")
        return
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        if name == "zmq":
            yield System(f"zmq://{folder}/run", "")
        elif name == "fake":
            yield System("fake://", "")
        else:
            with _broker(name, pathlib.Path(folder) / "broker") as system:
                yield system


@contextlib.contextmanager
def _broker(name: str, folder: pathlib.Path) -> Iterator[System]:
    from tests.functional.brokers.processes import BrokerMissing

    try:
        broker = _make(name, folder)
    except (BrokerMissing, ImportError) as exc:
        raise SystemMissing(str(exc)) from exc
    before = proc.children(os.getpid())
    try:
        try:
            broker.start()
        except BrokerMissing as exc:
            raise SystemMissing(str(exc)) from exc
        url = f"{broker.url}?durable=false" if name == "qpid" else broker.url  # It keeps nothing on disk.
        reductions = partial(broker.eval, _REDUCTIONS) if name == "rabbit" else None
        yield System(url, _version(name, broker), frozenset(proc.children(os.getpid()) - before), reductions)
    finally:
        broker.close()


def _make(name: str, folder: pathlib.Path) -> Any:
    """A broker as the functional tests start them."""
    if name == "rabbit":
        from tests.functional.brokers.rabbitmq import RabbitMQ

        return RabbitMQ("3.10", folder)
    if name == "qpid":
        from tests.functional.brokers.qpid import Qpid

        return Qpid(folder)
    if name == "nats":
        from tests.functional.brokers.nats import Nats

        return Nats(folder)
    if name == "redis":
        from tests.functional.brokers.redis import Redis

        return Redis(folder, keeps=True)
    raise SystemMissing(f"there is no message system {name!r}")


def _version(name: str, broker: Any) -> str:
    """What to call a broker that runs."""
    if name == "rabbit":
        return f"RabbitMQ {broker.release}"
    if name == "qpid":
        started = re.search(r"Version: (\S+)", broker.log())
        return f"Apache Qpid Broker-J {started[1] if started else ''}, in memory"
    program, remark = {
        "nats": ("nats-server", "with JetStream"),
        "redis": ("redis-server", "with an append-only file"),
    }[name]
    said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    found = re.search(r"v=?([0-9.]+)", said)
    return f"{program} {found[1] if found else ''}, {remark}"
