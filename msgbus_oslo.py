"""The entry point of msgbus's driver for oslo.messaging: ``transport_url = msgbus+rabbit://...``.

It is a module of its own, beside the package msgbus, since it decides how that is imported. In a program whose threads
eventlet has replaced by green threads, msgbus needs Python's own threads and sockets all the same: its I/O has a
thread, and a green thread that waits for it must not stop the others. So msgbus and the libraries of its drivers are
imported with the original modules in place, and `Hub` carries word from their threads to the green ones.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import logging
import os
import pkgutil
import sys
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from msgbus.oslo.driver import MsgbusDriver

LOG = logging.getLogger(__name__)

T = TypeVar("T")

ORIGINALS = ("_thread", "time", "select", "os", "threading", "queue", "socket")
"""The modules that eventlet replaces, as far as msgbus and its libraries use them."""
BUILT_ON_THEM = ("asyncio", "concurrent", "logging", "selectors", "ssl", "subprocess")
"""Modules of the standard library that keep references to those; also their submodules."""
SHARED = ("msgspec", "oslo_config.cfg", "stevedore", "importlib.metadata")
"""What msgbus shares with the rest of the program; imported before."""
LIBRARIES = ("amqp", "kombu", "vine", "zmq", "proton", "cproton", "nats", "redis")
"""Libraries of message systems. In a program under eventlet they work on native threads from then on."""
IMPORTED_LATE = ("kombu.connection", "kombu.messaging", "kombu.transport.pyamqp", "kombu.utils.amq_manager")
"""Modules of these libraries that they import themselves when they are first used."""
LEFT_OUT = frozenset(f"msgbus.{name}" for name in ("aio", "cli", "conformance", "oslo", "otel", "rpc"))
"""Parts of msgbus that a transport does not need; `msgbus.oslo` belongs to the green side."""

_hub: Hub | None = None


def make_driver(
    conf: Any, url: Any, default_exchange: str | None = None, allowed_remote_exmods: list[str] | None = None
) -> MsgbusDriver:
    """Make a driver, as oslo.messaging asks for it; see `msgbus.oslo.driver.MsgbusDriver`."""
    hub = _hub_of_eventlet()
    from msgbus.oslo.driver import MsgbusDriver

    return MsgbusDriver(conf, url, default_exchange, allowed_remote_exmods, hub)


def _hub_of_eventlet() -> Hub | None:
    """What carries word to green threads; None if this program has none."""
    global _hub  # noqa: PLW0603 - there is one for the process, as there is one eventlet
    patcher = sys.modules.get("eventlet.patcher")
    if patcher is None or not any(patcher.is_monkey_patched(name) for name in ("thread", "socket", "select")):
        return None
    if _hub is None and "msgbus" not in sys.modules:
        _hub = Hub()
        points = importlib.metadata.entry_points(group="msgbus.drivers")
        drivers = {point.module.partition(".")[0] for point in points} - {"msgbus"}
        with _originals(_hub, frozenset(drivers.union(LIBRARIES))):
            for name in ("msgbus", *sorted(drivers)):
                _import_all(name)
            for name in (*LIBRARIES, *IMPORTED_LATE):
                with contextlib.suppress(ImportError):
                    importlib.import_module(name)
    return _hub  # Without one msgbus says itself that it cannot work: it was imported before, for something else.


def _import_all(package: str) -> None:
    """Import a package with all its modules, but for those whose library is missing."""
    with contextlib.suppress(ImportError):
        module = importlib.import_module(package)
        for found in pkgutil.iter_modules(getattr(module, "__path__", ()), f"{package}."):
            if found.name not in LEFT_OUT:
                _import_all(found.name)


@contextlib.contextmanager
def _originals(hub: Hub, libraries: frozenset[str]) -> Iterator[None]:
    """What is imported meanwhile gets the original modules of the standard library.

    Afterwards the rest of the program finds the replaced ones in their places.

    Args:
        hub: gets what is logged there.
        libraries: packages that stay as they are imported here.
    """
    from eventlet import patcher

    for name in SHARED:
        importlib.import_module(name)
    originals = {name: patcher.original(name) for name in ORIGINALS}
    # A copy that was made now would know the environment in which the process was started.
    originals["os"].environ = os.environ
    fresh = libraries.union(BUILT_ON_THEM)
    before = dict(sys.modules)
    for name in before:
        if name.partition(".")[0] in fresh:
            del sys.modules[name]
    sys.modules.update(originals)
    try:
        _forward_logs(importlib.import_module("logging"), hub)
        yield
    finally:
        for name in list(sys.modules):
            if name not in before and name.partition(".")[0] in sys.stdlib_module_names:
                del sys.modules[name]
        restored = (name for name in before if name.partition(".")[0] not in libraries)
        sys.modules.update({name: before[name] for name in restored})


def _forward_logs(native_logging: Any, hub: Hub) -> None:
    """Have all records of a copy of the module `logging` handled by the program's own loggers, in the hub's thread.

    A lock of the program's `logging` is a green one: a native thread that waits for it would wait for ever.
    """

    class Forwarding(native_logging.Logger):  # type: ignore[misc]  # the class of a module that is imported here
        def __init__(self, name: str, level: int = 0) -> None:
            super().__init__(name, level)
            self._program = logging.getLogger(name)

        def isEnabledFor(self, level: int) -> bool:
            return level > logging.root.manager.disable and level >= self._program.getEffectiveLevel()

        def callHandlers(self, record: Any) -> None:
            # Soon in any case: a handler may yield to other green threads, and msgbus may hold a lock here.
            hub.run_soon(self._program.handle, record)

    native_logging.setLoggerClass(Forwarding)


class Hub:
    """The thread of eventlet's hub, on which all green threads run, as seen from native threads.

    In a forked child it is that of the child.
    """

    def __init__(self) -> None:
        from eventlet import patcher

        self._os = patcher.original("os")
        self._thread = patcher.original("_thread")
        self._start_clean()
        os.register_at_fork(after_in_child=self._start_clean)

    def _start_clean(self) -> None:
        self._todo: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._ident: int = self._thread.get_ident()
        # Where its green thread is woken; both are made when they are needed: a forked child makes a new hub of
        # eventlet's before that.
        self._wake: int | None = None

    @property
    def is_here(self) -> bool:
        """Whether this is the hub's thread."""
        return self._ident == int(self._thread.get_ident())

    def start(self) -> None:
        """Begin to call what is passed on, unless that was done. Not in a child that is just being forked."""
        if self._wake is None and self.is_here:
            from eventlet import spawn_n

            self._wake = self._os.eventfd(1, self._os.EFD_NONBLOCK | self._os.EFD_CLOEXEC)
            spawn_n(self._run, self._wake)

    def run(self, func: Callable[..., object], *args: Any) -> None:
        """Call a function on the hub's thread: now, or soon if this is another thread. It must not block."""
        if self.is_here:
            func(*args)
        else:
            self.run_soon(func, *args)

    def run_soon(self, func: Callable[..., object], *args: Any) -> None:
        """Call a function in the green thread that does so, after those of earlier calls. Any thread."""
        self._todo.append((func, args))
        if self._wake is not None:
            self._os.eventfd_write(self._wake, 1)

    def run_native(self, func: Callable[[], T]) -> T:
        """Call a function that may block in a native thread, and return its value. In a green thread."""
        from eventlet import event

        done = event.Event()

        def run() -> None:
            try:
                value = func()
            except BaseException as exc:
                self.run_soon(done.send_exception, exc)
            else:
                self.run_soon(done.send, value)

        self.start()
        self._thread.start_new_thread(run, ())
        result: T = done.wait()
        return result

    def _run(self, wake: int) -> None:
        """Call what was passed on; ends in a forked child, which has another one."""
        from eventlet import spawn_n

        try:
            self._call_all(wake)
        except BaseException:
            # Ctrl-C came here, or a handler of the log raised a Timeout. Others still wait for what is passed on.
            if wake == self._wake:
                self._os.eventfd_write(wake, 1)
                spawn_n(self._run, wake)
            raise

    def _call_all(self, wake: int) -> None:
        from eventlet import hubs

        while wake == self._wake:
            hubs.trampoline(wake, read=True)
            if wake != self._wake:
                return
            with contextlib.suppress(BlockingIOError):
                self._os.eventfd_read(wake)
            while self._todo:
                func, args = self._todo.popleft()
                try:
                    func(*args)
                except Exception:
                    LOG.exception("a function that msgbus has passed to the green threads raised")
