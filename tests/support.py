"""Helpers of several unit tests: separate configurations, and transports on separate buses."""

from __future__ import annotations

import itertools
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from typing import Any
from unittest import mock

import pytest
from oslo_config import cfg

from msgbus import configuration
from msgbus.drivers.toolkit.loop import Loop
from msgbus.drivers.toolkit.poller import Poller
from msgbus.transport import Transport, get_rpc_transport

ROOT = pathlib.Path(__file__).resolve().parents[1]
"""The project's root directory."""

EVENT_TIMEOUT = 20.0
"""Seconds that a test waits for an event that happens at once, unless there is a bug."""

PROTON = pytest.mark.skipif(find_spec("proton") is None, reason="the extra qpid is not installed")
"""Marks tests of the qpid driver: its library needs a compiler, and the other unit tests run without it."""

_buses = itertools.count()


class Awaited:
    """An endpoint that releases `came` for each call, so that a test can wait for them."""

    def __init__(self) -> None:
        self.came = threading.Semaphore(0)

    def wait(self, count: int = 1) -> None:
        for _ in range(count):
            assert self.came.acquire(timeout=EVENT_TIMEOUT)


def new_conf(*arguments: str, **overrides: Any) -> cfg.ConfigOpts:
    """A configuration with the core's options, some of them overridden, that reads none of this machine's files."""
    conf = cfg.ConfigOpts()
    conf(list(arguments), project="msgbus-test", default_config_files=[], default_config_dirs=[])
    configuration.register(conf)
    for name, value in overrides.items():
        conf.set_override(name, value)
    return conf


def conf_from_file(folder: pathlib.Path, text: str) -> cfg.ConfigOpts:
    """The configuration of a service that has read one file, which is made in `folder`; msgbus has not seen it yet."""
    path = folder / "service.conf"
    path.write_text(text)
    conf = cfg.ConfigOpts()
    conf([], project="msgbus-test", default_config_files=[str(path)], default_config_dirs=[])
    return conf


def new_url() -> str:
    """The URL of a bus in memory that no other test uses."""
    return f"fake://test-{next(_buses)}/"


def new_transport(
    url: str | None = None, allowed_remote_exmods: list[str] | None = None, **overrides: Any
) -> Transport:
    """A transport in memory; without `url`, on a bus of its own."""
    return get_rpc_transport(new_conf(**overrides), url or new_url(), allowed_remote_exmods)


@contextmanager
def holding(lock: AbstractContextManager[object]) -> Iterator[None]:
    """Have another thread hold a lock meanwhile."""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            done.wait()

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    assert held.wait(EVENT_TIMEOUT)
    try:
        yield
    finally:
        done.set()
        thread.join()


def exit_code_of(func: Callable[[], object]) -> int:
    """Run a function in a forked child: 0 if it returns, something else if it raises, or does not return in time."""
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(int(EVENT_TIMEOUT / 4))
            func()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextmanager
def standing_clock(loop: Loop) -> Iterator[None]:
    """For a while no time passes for a loop: what is asked of it for the same second is due at the same moment."""
    with mock.patch.object(loop, "now", return_value=loop.now()):
        yield


class VirtualClock:
    """A clock that takes the place of `Loop.now` in the whole of msgbus.

    A `Loop` never waits for a time: if nothing else is to be done, it is that time. It waits for threads that connect:
    they take no time either.

    Attributes:
        seconds: the time.
        stands: the time does not go on; then a loop sleeps as always.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 1000.0
        self.stands = False
        monkeypatch.setattr(Loop, "now", staticmethod(lambda: self.seconds))
        clock = self

        class VirtualPoller(Poller):
            def sleep(self, timeout: float) -> list[tuple[int, int]]:
                if not clock.stands and not self._epoll.poll(0.0):
                    for thread in threading.enumerate():
                        if thread.name == "msgbus-connect":
                            thread.join()
                    if not self._epoll.poll(0.0 if timeout >= 0 else -1):
                        clock.seconds += timeout
                        return []
                return super().sleep(timeout if clock.stands else 0.0)

        monkeypatch.setattr("msgbus.drivers.toolkit.loop.Poller", VirtualPoller)
