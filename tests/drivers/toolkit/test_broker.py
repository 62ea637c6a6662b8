"""What the shell of a broker's driver does for it, seen on the template of `msgbus new-driver`."""

from __future__ import annotations

import errno
import gc
import importlib.util
import itertools
import signal
import ssl
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import pytest
from oslo_config import cfg

from msgbus import CapabilityMissing, TransportUnavailable
from msgbus.conformance.waiting import until
from msgbus.drivers.base import Address, Capability, Delivery, Message
from msgbus.drivers.toolkit.broker import BrokerDriver
from msgbus.drivers.toolkit.descriptors import HINT
from msgbus.drivers.toolkit.loop import Loop
from msgbus.url import TransportURL
from tests.support import EVENT_TIMEOUT, ROOT, VirtualClock

TEMPLATE = ROOT / "msgbus" / "cli" / "template" / "msgbus_newdriver" / "driver.py"
TOPIC, OTHER = Address("topic", "x", "t"), Address("topic", "x", "other")


@pytest.fixture
def newdriver(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The template's module, which may be changed."""
    spec = importlib.util.spec_from_file_location("newdriver", TEMPLATE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@contextmanager
def open_driver(newdriver: ModuleType, loop: Loop | None = None) -> Iterator[BrokerDriver]:
    """A driver of the template, closed at the end."""
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[])
    loop = loop or Loop("test")
    driver: BrokerDriver = newdriver.NewdriverDriver(conf, TransportURL.parse(conf, "newdriver://here/"), loop)
    try:
        yield driver
    finally:
        driver.close()
        loop.close()


def message(body: str) -> Message:
    """A message that may wait for long."""
    return Message(body.encode(), "text/plain", body, ttl=30.0)


def change(cls: Any, name: str, func: Any) -> None:
    """Put `func` in the place of a method; it gets that method first."""
    old = getattr(cls, name)
    setattr(cls, name, lambda *args, **kwargs: func(old, *args, **kwargs))


def test_messages_are_published_on_the_loops_thread(newdriver: ModuleType) -> None:
    """Whoever sends, subscribes and closes: `publish` and `flush` of the session are called on one thread alone."""
    threads = set()

    def take(got: Delivery) -> None:
        got.accept()

    def note(old: Any, *args: Any) -> Any:
        threads.add(threading.current_thread().name)
        return old(*args)

    for name in ("publish", "flush"):
        change(newdriver._Session, name, note)
    with open_driver(newdriver) as driver:
        for _ in range(5):
            subscription = driver.subscribe([TOPIC], take, prefetch=1)
            inbox = driver.open_inbox(lambda _got: None)
            driver.send(TOPIC, message("x"), mandatory=False).result(10)
            inbox.close().result(10)
            subscription.close().result(10)
    assert threads == {"test"}


class Stop(Exception):
    """What a handler of a signal raises."""


def test_a_handler_of_a_signal_runs_when_the_message_is_written(newdriver: ModuleType) -> None:
    """Where a driver publishes on the main thread: a part of a message, or a lock, would be left to all others."""
    done: list[str] = []

    def stop(*_: object) -> None:
        done.append("handler")
        raise Stop

    def note(name: str, old: Any, *args: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            return old(*args)
        if not done:
            signal.raise_signal(signal.SIGUSR1)
        done.append(name)
        return old(*args)

    before = signal.signal(signal.SIGUSR1, stop)
    newdriver.NewdriverDriver.publishes_on_any_thread = True
    try:
        with open_driver(newdriver) as driver:
            driver.open_inbox(lambda _got: None).ready.result(10)
            driver.send(TOPIC, message("x"), mandatory=False).result(10)
            for name in ("publish", "flush"):
                change(newdriver._Session, name, partial(note, name))
            with pytest.raises(Stop):
                driver.send(TOPIC, message("y"), mandatory=False)
            assert done == ["publish", "flush", "handler"]
            driver.send(TOPIC, message("z"), mandatory=False).result(10)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_close_waits_for_calls_on_the_loop(newdriver: ModuleType) -> None:
    """A driver that is closed right after many messages were given to it, and that connects only now, sends them."""
    came = []
    dialled = threading.Event()

    def dial(old: Any, *args: Any) -> Any:
        dialled.wait(10)
        return old(*args)

    with open_driver(newdriver) as receiver:
        receiver.subscribe([TOPIC], lambda got: came.append(got.message.id), prefetch=100).ready.result(10)
        change(newdriver.NewdriverDriver, "dial", dial)
        with open_driver(newdriver) as driver:
            busy, go_on = threading.Event(), threading.Event()
            driver.loop.call(busy.set)
            driver.loop.call(go_on.wait, 10)
            busy.wait(10)
            sent = [driver.send(TOPIC, message(str(n)), mandatory=True) for n in range(20)]
            timers = [threading.Timer(0.2, go_on.set), threading.Timer(0.6, dialled.set)]
            for timer in timers:
                timer.start()
            driver.close()
            for future in sent:
                future.result(0)
            for timer in timers:
                timer.join()
        until(lambda: len(came) == 20, "all messages")


def test_an_address_that_cannot_be_consumed_from_is_tried_again(
    newdriver: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever its feed raises, the other addresses get theirs, and it is consumed from when that works."""
    errors = [TransportUnavailable("there are too many"), ValueError("a bug")]

    def start(old: Any, feed: Any) -> None:
        if feed.name.endswith("other/") and errors:
            raise errors.pop()
        old(feed)

    change(newdriver._Feed, "start", start)
    with open_driver(newdriver) as driver:
        other = driver.subscribe([OTHER], lambda _got: None, prefetch=1)
        driver.subscribe([TOPIC], lambda _got: None, prefetch=1).ready.result(10)
        other.ready.result(10)
        assert driver.state == driver.name()
    assert errors == []
    assert f"{OTHER}: it cannot be consumed from: ValueError('a bug'); next try in " in caplog.text
    assert f"{OTHER}: there are too many; next try in " in caplog.text


def test_the_order_of_serve_and_sendable_does_not_matter(newdriver: ModuleType) -> None:
    """A session may say that messages can go before it says that it can be consumed."""

    def start(_old: Any, session: Any) -> None:
        session.system.sessions.add(session)
        session._line.sendable()
        session._line.serve("a broker in memory")

    change(newdriver._Session, "start", start)
    with open_driver(newdriver) as driver:
        driver.send(TOPIC, message("x"), mandatory=False).result(10)


def test_what_is_not_declared_is_refused(newdriver: ModuleType) -> None:
    """A driver has nothing to write for the capabilities store and inspect that it does not declare."""
    newdriver.NewdriverDriver.capabilities = frozenset({Capability.ORDERED})
    with open_driver(newdriver) as driver:
        for kind in ("stored", "dead"):
            error = driver.send(TOPIC._replace(kind=kind), message("x"), mandatory=False).exception(10)
            assert isinstance(error, CapabilityMissing)
        with pytest.raises(CapabilityMissing):
            driver.subscribe([Address("dead", "x", "t")], lambda _got: None, prefetch=1)
        with pytest.raises(CapabilityMissing):
            driver.inspect(TOPIC)


@pytest.mark.parametrize(
    ("error", "text", "permanent"),
    [
        (ConnectionRefusedError("no\nbody"), "no body; check that it runs and that host and port are right", False),
        (ConnectionResetError(), "ConnectionResetError; check that it runs and that host and port are right", False),
        (TimeoutError("timed out"), "timed out (no answer within 3 s); check that it runs, is not stuck,", False),
        (ssl.SSLError("wrong version"), "('wrong version',); check that this port speaks TLS", True),
        (ssl.SSLCertVerificationError("self-signed"), "its certificate is not trusted: ", True),
        (OSError(errno.EMFILE, "Too many open files"), f"[Errno 24] Too many open files; {HINT}", False),
        (UnicodeError("label too long"), "label too long; check the host name", False),
    ],
)
def test_what_sockets_and_tls_raise_says_what_to_check(
    newdriver: ModuleType, error: Exception, text: str, permanent: bool
) -> None:
    """A driver has to write words for the errors of its library alone."""
    with open_driver(newdriver) as driver:
        driver.connect_timeout = 3.0
        said, is_permanent = driver.explain(error, driver.hosts[0])
        assert said.startswith(text)
        assert is_permanent == permanent


def test_nothing_is_kept_of_messages_that_a_permanent_error_has_failed(newdriver: ModuleType) -> None:
    """As with a wrong password: the process may go on sending for days, and each send fails with the next try."""

    def dial(_old: Any, *_args: Any) -> Any:
        raise ssl.SSLError("wrong version")

    change(newdriver.NewdriverDriver, "dial", dial)
    with open_driver(newdriver) as driver:
        sends = [driver.send(TOPIC, message(str(n)), mandatory=False) for n in range(3)]
        for sent in sends:
            assert isinstance(sent.exception(EVENT_TIMEOUT), TransportUnavailable)
        kept = [weakref.ref(sent) for sent in sends]
        del sends, sent
        until(lambda: gc.collect() >= 0 and not any(ref() for ref in kept), "the messages are dropped")


def test_an_hour_without_the_broker_is_replayed_in_a_moment(
    newdriver: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tries to connect, and the deadlines of messages that wait for a connection, follow the loop's clock alone.

    Each message fails when its own time ends. Meanwhile connecting is tried every few seconds, and when it succeeds,
    the messages that still wait are sent.
    """
    hour = 3600.0
    clock = VirtualClock(monkeypatch)
    begin = clock.seconds
    tries: list[float] = []
    ends: dict[float, float] = {}
    all_ended = threading.Event()

    def dial(old: Any, *args: Any) -> Any:
        tries.append(clock.seconds - begin)
        if clock.seconds - begin < hour:
            raise ConnectionRefusedError("nobody listens there")
        return old(*args)

    change(newdriver.NewdriverDriver, "dial", dial)
    times = (1.0, 60.0, 600.0, hour - 1, 2 * hour)
    sent: dict[float, Any] = {}

    def send_all(driver: BrokerDriver) -> None:
        """Send all at the same time, on the loop's thread."""
        for seconds in times:
            waiting = Message(b"x", "text/plain", f"{seconds}", ttl=seconds)
            sent[seconds] = driver.send(TOPIC, waiting, mandatory=False)
            sent[seconds].add_done_callback(lambda _sent, seconds=seconds: on_end(seconds))

    def on_end(seconds: float) -> None:
        ends[seconds] = clock.seconds - begin
        if len(ends) == len(times):
            all_ended.set()

    with open_driver(newdriver, Loop("test")) as driver:
        driver.loop.call(send_all, driver)
        assert all_ended.wait(3 * EVENT_TIMEOUT), f"after {clock.seconds - begin:.0f} s only {ends} have ended"
    for seconds in times[:-1]:
        assert isinstance(sent[seconds].exception(0), TransportUnavailable)
        assert seconds - 0.1 <= ends[seconds] <= seconds + 0.1
    assert sent[times[-1]].exception(0) is None
    assert hour <= ends[times[-1]] <= hour + 10
    pauses = [after - before for before, after in itertools.pairwise(tries)]
    assert max(pauses) <= 5.0 + 0.1
    assert hour / 5 < len(tries) < hour / 2.5 + 10
