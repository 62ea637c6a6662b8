"""Who drives the loop: callers who wait, threads that wait for work, and the loop's own thread."""

from __future__ import annotations

import contextvars
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest

from msgbus.drivers.toolkit.futures import LightFuture
from msgbus.drivers.toolkit.loop import FOREVER, LINGER, Loop
from msgbus.drivers.toolkit.signals import HeldSignals
from msgbus.drivers.toolkit.turn import Turn
from msgbus.exceptions import MessagingException
from tests.support import EVENT_TIMEOUT


@pytest.fixture
def loop() -> Iterator[Loop]:
    """One that runs, and that nobody drives at the moment but its own thread."""
    made = Loop("test-loop")
    answered(made)
    yield made
    made.close()
    assert made.closed


def answered(loop: Loop, func: Callable[[], object] = lambda: None) -> Future[object]:
    """A future that the loop finishes in a moment, with what `func` returns there."""
    future: Future[object] = Future()
    loop.call_later(0.01, lambda: future.set_result(func()))
    return future


def wait_until_driving(loop: Loop) -> None:
    """Wait as a caller until this thread drives: from the second wait on, or soon after."""
    while True:
        found = answered(loop, threading.get_ident)
        assert loop.wait_for(found, loop.now() + EVENT_TIMEOUT)
        if found.result() == threading.get_ident():
            return


def test_a_caller_who_waits_drives(loop: Loop) -> None:
    """What it waits for is done on its own thread; the loop's thread stands by."""
    wait_until_driving(loop)
    assert not loop.is_here


@pytest.mark.parametrize("cls", [Future, LightFuture])
def test_waits_that_end_early_leave_nothing(loop: Loop, cls: type[Future[None]]) -> None:
    """So any number may wait for one future, which is done later or never. Other callbacks of it stay."""
    future = cls()
    done = threading.Event()
    future.add_done_callback(lambda _future: done.set())
    for _ in range(100):
        assert not loop.wait_for(future, loop.now() + 0.0001)
    assert len(vars(future)["_done_callbacks"]) == 1
    future.set_result(None)
    assert done.wait(EVENT_TIMEOUT)
    assert loop.wait_for(future, loop.now())


def test_the_loops_thread_drives_again_when_nobody_waits(loop: Loop) -> None:
    """What is due, or is handed over, after a caller has gone is done all the same."""
    wait_until_driving(loop)
    due, called = threading.Event(), threading.Event()
    loop.call_later(0, due.set)
    assert due.wait(EVENT_TIMEOUT)
    wait_until_driving(loop)
    loop.call(called.set)
    assert called.wait(EVENT_TIMEOUT)


def test_descriptors_are_read_when_nobody_waits(loop: Loop) -> None:
    """A socket that becomes readable right after a caller has gone is read soon."""
    read, write = os.pipe()
    got = threading.Event()

    def on_read() -> None:
        os.read(read, 10)
        got.set()

    loop.call(loop.watch, read, on_read)
    wait_until_driving(loop)
    os.write(write, b"x")
    assert got.wait(EVENT_TIMEOUT)
    stopped = threading.Event()
    loop.call(loop.unwatch, read)
    loop.call(stopped.set)
    assert stopped.wait(EVENT_TIMEOUT)
    os.close(read)
    os.close(write)


def test_many_callers_wait_at_once(loop: Loop) -> None:
    """One of them drives for all; when its answer is there another goes on, and each gets its own."""
    wrong: list[object] = []

    def wait(number: int) -> None:
        for n in range(50):
            future: Future[object] = Future()
            loop.call_later(0.001 * (number % 5), future.set_result, (number, n))
            if not loop.wait_for(future, loop.now() + EVENT_TIMEOUT) or future.result() != (number, n):
                wrong.append((number, n))

    threads = [threading.Thread(target=wait, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(EVENT_TIMEOUT)
    assert not wrong


def test_a_wait_ends_at_its_time(loop: Loop) -> None:
    """Whoever drives, and for whatever others still wait."""
    never: Future[object] = Future()
    wait_until_driving(loop)
    began = loop.now()
    assert not loop.wait_for(never, began + 0.05)
    assert loop.now() >= began + 0.05
    other = threading.Thread(target=loop.wait_for, args=(never, loop.now() + EVENT_TIMEOUT))
    other.start()
    assert not loop.wait_for(never, loop.now() + 0.05)
    never.set_result(None)  # On this thread: the other one is asleep in the loop, perhaps.
    other.join(EVENT_TIMEOUT)
    assert not other.is_alive()


def test_a_caller_may_drive_before_it_waits(loop: Loop) -> None:
    """Then what it hands over is done when it waits, by itself, and what others hand over too."""
    wait_until_driving(loop)
    while not loop.take_turn():
        pass
    try:
        assert loop.is_here
        assert not loop.take_turn()
        ran: list[int] = []
        done: Future[object] = Future()
        loop.call(lambda: ran.append(threading.get_ident()))
        other = threading.Thread(target=loop.call, args=(done.set_result, None))
        other.start()
        other.join()
        assert not ran
        assert loop.wait_for(done, loop.now() + EVENT_TIMEOUT)
        assert ran == [threading.get_ident()]
    finally:
        loop.give_turn()
    assert not loop.is_here


def test_what_was_handed_over_is_done_if_the_caller_does_not_wait(loop: Loop) -> None:
    """It has taken the turn, and given it back without waiting."""
    wait_until_driving(loop)
    while not loop.take_turn():
        pass
    done = threading.Event()
    loop.call(done.set)
    loop.give_turn()
    assert done.wait(EVENT_TIMEOUT)


def test_nobody_lingers_when_the_turn_is_given_back(loop: Loop) -> None:
    """What a driver would hold back for a moment is written: the loop's own thread may drive milliseconds later."""
    wait_until_driving(loop)
    while not loop.take_turn():
        pass
    lingers: list[bool] = []
    loop.before_sleep = lambda is_over: FOREVER if is_over else LINGER
    loop.write_rest = lambda: lingers.append(loop.lingers)
    loop.step()
    loop.give_turn()
    assert lingers[:2] == [True, False]


def test_a_wake_up_while_the_turn_is_given_back_is_not_lost(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop's thread is called for what is handed over next, however long it would stand by otherwise."""
    wait_until_driving(loop)
    while not loop.take_turn():
        pass
    ready = threading.Lock()
    ready.acquire()
    woke: list[bool] = []

    def write_rest() -> None:  # Runs when the thread no longer counts as awake, and still has the turn.
        if not woke:
            other = threading.Thread(target=loop.wake, args=(ready,))
            other.start()
            other.join()
            woke.append(True)

    loop.write_rest = write_rest
    monkeypatch.setattr("msgbus.drivers.toolkit.turn.STAND_BY", 1000.0)
    time.sleep(0.02)  # The loop's thread stands by with the new time, in all probability.
    loop.give_turn()
    assert woke
    done = threading.Event()
    loop.call(done.set)
    assert done.wait(EVENT_TIMEOUT)


def test_a_caller_gives_the_turn_back_if_the_loop_has_to_keep_its_thread(loop: Loop) -> None:
    """An event loop of asyncio may begin while a caller drives: from then on only one thread does."""
    wait_until_driving(loop)
    while not loop.take_turn():
        pass
    try:
        loop.keep_thread()
        first, second = answered(loop, threading.get_ident), answered(loop, threading.get_ident)
        assert loop.wait_for(first, loop.now() + EVENT_TIMEOUT)
        assert loop.wait_for(second, loop.now() + EVENT_TIMEOUT)
        assert not loop.is_here
        assert second.result() != threading.get_ident()
    finally:
        loop.give_turn()


def test_a_thread_that_is_away_gives_the_turn_back_if_the_loop_has_to_keep_its_thread(loop: Loop) -> None:
    """Whether it waits for something meanwhile, or comes back."""
    wait_until_driving(loop)
    while not loop.take_turn():
        pass
    loop.keep_thread()
    loop.go_away()
    assert not loop.come_back()
    found = answered(loop, threading.get_ident)
    assert loop.wait_for(found, loop.now() + EVENT_TIMEOUT)
    assert found.result() != threading.get_ident()


def test_a_thread_that_is_away_comes_back(loop: Loop) -> None:
    """What has gathered meanwhile is done when it does; the loop's thread does not come between."""
    wait_until_driving(loop)
    for _ in range(200):
        while not loop.take_turn():
            pass
        ran: list[int] = []
        loop.go_away()
        assert not loop.is_here
        loop.call(lambda: ran.append(threading.get_ident()))  # noqa: B023  # it runs in this round
        if loop.come_back():
            loop.step()
            assert ran == [threading.get_ident()]
            loop.give_turn()
            return
    pytest.fail("in 200 tries another thread took the turn each time")


def test_a_thread_that_is_away_for_long_is_replaced(loop: Loop) -> None:
    """What others hand over is done by the loop's thread then; the one that was away finds that out."""
    wait_until_driving(loop)
    while not loop.take_turn():
        pass
    loop.go_away()
    done = threading.Event()
    loop.call(done.set)
    assert done.wait(EVENT_TIMEOUT)  # Nobody else could do it: this thread does something else.
    assert not loop.come_back()
    loop.give_turn()
    assert loop.wait_for(answered(loop), loop.now() + EVENT_TIMEOUT)
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_a_thread_that_has_only_just_gone_is_not_replaced() -> None:
    """It has driven, perhaps asleep, nearly until the loop's thread looked: its time begins when it goes."""
    turn = Turn()
    assert turn.take()

    class Looks:
        """Stands for the lock on which the loop's thread stands by: nobody wakes it."""

        times = 0

        def acquire(self, timeout: float = 0.0) -> bool:
            self.times += 1
            if self.times == 3:
                turn.go_away()
            return False

    looks: Any = Looks()
    turn._called = looks
    assert turn.stand_by()
    assert looks.times == 4
    assert turn.take_away()


def test_a_thread_that_is_away_may_wait(loop: Loop) -> None:
    """A handler's own call: it drives for that, and is away again afterwards."""
    wait_until_driving(loop)
    while not loop.take_turn():
        pass
    loop.go_away()
    assert loop.wait_for(answered(loop), loop.now() + EVENT_TIMEOUT)
    assert not loop.is_here
    if loop.come_back():  # Otherwise the loop's thread came first.
        loop.give_turn()


def test_a_thread_that_waits_for_work_is_woken_by_others(loop: Loop) -> None:
    """It sleeps in the loop; whoever wakes it from outside needs no descriptor for that."""
    ready = threading.Lock()
    ready.acquire()
    woken: list[bool] = []

    def work() -> None:
        for _ in range(20):
            while not ready.acquire(blocking=False):
                loop.wait(ready, FOREVER)
                if not ready.locked():
                    break
                woken.append(True)
                break

    worker = threading.Thread(target=work)
    worker.start()
    end = time.monotonic() + EVENT_TIMEOUT
    while worker.is_alive() and time.monotonic() < end:
        loop.wake(ready)
    worker.join(EVENT_TIMEOUT)
    assert not worker.is_alive()


def test_context_variables_of_a_caller_are_not_seen(loop: Loop) -> None:
    """What a caller drives is not part of its request."""
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="nobody")
    name.set("caller")
    wait_until_driving(loop)
    found = answered(loop, name.get)
    assert loop.wait_for(found, loop.now() + EVENT_TIMEOUT)
    assert found.result() == "nobody"


def test_close_while_a_caller_drives() -> None:
    """The caller hears of it in its own way, and the loop ends."""
    loop = Loop("test-loop")
    wait_until_driving(loop)
    never: Future[object] = Future()
    waits = threading.Thread(target=loop.wait_for, args=(never, loop.now() + EVENT_TIMEOUT))
    waits.start()
    loop.close()
    assert loop.closed
    never.set_result(None)
    waits.join(EVENT_TIMEOUT)
    assert not waits.is_alive()


def test_close_while_the_driving_thread_is_away() -> None:
    """The loop does not wait for its return."""
    loop = Loop("test-loop")
    wait_until_driving(loop)
    while not loop.take_turn():
        pass
    loop.go_away()
    closing = threading.Thread(target=loop.close)
    closing.start()
    closing.join(EVENT_TIMEOUT)
    assert loop.closed
    assert not loop.come_back()
    loop.give_turn()
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_fork_while_a_caller_drives() -> None:
    """The child's loop starts clean, and works; the parent's caller goes on."""
    loop = Loop("test-loop")
    wait_until_driving(loop)
    future: Future[object] = Future()
    waits = threading.Thread(target=loop.wait_for, args=(future, loop.now() + EVENT_TIMEOUT))
    waits.start()
    child = os.fork()
    if child == 0:
        works = loop.wait_for(answered(loop), loop.now() + EVENT_TIMEOUT)
        os._exit(0 if works else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    loop.call(future.set_result, None)
    waits.join(EVENT_TIMEOUT)
    assert future.done()
    loop.close()


def test_fork_in_a_function_that_a_caller_drives() -> None:
    """The caller has the turn in the parent alone; in the child it waits as if it had just begun to."""
    loop = Loop("test-loop")
    wait_until_driving(loop)
    here = threading.get_ident()
    never: Future[object] = Future()
    forked: list[int] = []

    def fork() -> None:
        if threading.get_ident() == here:
            forked.append(os.fork())
        else:
            loop.call_later(0.01, fork)

    parent = os.getpid()
    loop.call_later(0.01, fork)
    end = loop.now() + EVENT_TIMEOUT
    try:
        while not forked and loop.now() < end:
            loop.wait_for(never, loop.now() + 0.1)
        if os.getpid() != parent:
            works = loop.wait_for(answered(loop), loop.now() + EVENT_TIMEOUT)
            os._exit(0 if works else 1)
    finally:
        if os.getpid() != parent:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(forked[0], 0)[1]) == 0
    assert loop.wait_for(answered(loop), loop.now() + EVENT_TIMEOUT)
    loop.close()


INTERRUPTED = """
import os, signal, sys, threading
from concurrent.futures import Future
import msgbus.drivers.toolkit
from msgbus.drivers.toolkit.loop import Loop

TIMEOUT = 60
number = getattr(signal, sys.argv[1])
folder = os.path.dirname(msgbus.drivers.toolkit.__file__)
loop = Loop("loop")
half_done = []

class Stop(Exception):
    pass

def stop(*_):
    raise Stop

def work(done):
    half_done.append(done)
    sum(range(10))
    half_done.remove(done)
    done.set_result(None)

def send_signal_at(point):
    # Python runs handlers of signals when a function has begun, or has returned. Here it comes at one such point.
    def profile(frame, event, _arg):
        nonlocal point
        code = frame.f_code
        if event == "c_call" or (not code.co_filename.startswith(folder) and code is not work.__code__):
            return
        point -= 1
        if point == 0:
            sys.setprofile(None)
            signal.raise_signal(number)
    sys.setprofile(profile)

def wait(point, drives):
    # As a caller does, who drives from the beginning, or perhaps later. Returns whether it was stopped.
    done = Future()
    stopped = False
    try:
        send_signal_at(point)
        drives = loop.take_turn() or drives
        loop.call_later(0.0, len, "")
        loop.call(work, done)
        assert loop.wait_for(done, loop.now() + TIMEOUT), (point, drives)
    except Stop:
        stopped = True
    try:
        if drives:
            loop.give_turn()
    except Stop:
        stopped = True
    sys.setprofile(None)
    return stopped

def take_turn():
    never = threading.Lock()
    never.acquire()
    while not loop.take_turn():
        loop.call(lambda: None)  # After that the loop's thread gives the turn to one that waits.
        loop.wait(never, loop.now() + 0.01)

loop.call(lambda: None)
signal.signal(number, stop)
stops = {}
for drives in (True, False):
    point = stops[drives] = 0
    while point < stops[drives] + 5:  # The last ones come after the last point.
        point += 1
        if drives:
            take_turn()
        stops[drives] += wait(point, drives)
        assert not half_done, (point, drives)
        assert not loop.is_here, (point, drives)
        assert signal.getsignal(number) is stop, (point, drives)
        called = threading.Event()
        loop.call(called.set)
        assert called.wait(TIMEOUT), (point, drives)
print(stops[True] > 30, stops[False] > 10)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGALRM"])
def test_a_handler_of_a_signal_runs_between_two_steps(name: str) -> None:
    """What it raises ends the main thread's wait, and nothing is left half done, wherever the signal comes.

    No step of the loop, nor a call to it that has to wake a thread, nor the turn, which others need.
    """
    child = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, name],
        capture_output=True,
        text=True,
        timeout=10 * EVENT_TIMEOUT,
        check=False,
    )
    assert child.stderr == ""
    assert child.stdout.split() == ["True", "True"]


def test_handlers_are_as_before_after_a_wait(loop: Loop) -> None:
    """Those of the program, and none of the loop's."""
    before = signal.getsignal(signal.SIGINT)
    wait_until_driving(loop)
    assert signal.getsignal(signal.SIGINT) is before


def test_handlers_that_are_replaced_between_two_waits() -> None:
    """The new one is called, and a signal without one is left alone."""
    ran: list[str] = []
    held = HeldSignals(lambda: ran.append("put off"))
    before = signal.getsignal(signal.SIGUSR1)
    try:
        for name in ("first", "first again", "second"):
            if name != "first again":
                signal.signal(signal.SIGUSR1, partial(lambda name, *_: ran.append(name), name))
            handler = signal.getsignal(signal.SIGUSR1)
            held.hold()
            signal.raise_signal(signal.SIGUSR1)
            assert ran == ["put off"]
            held.release()
            assert ran == ["put off", name.removesuffix(" again")]
            assert signal.getsignal(signal.SIGUSR1) is handler
            ran.clear()
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        held.hold()
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
        held.release()
    finally:
        signal.signal(signal.SIGUSR1, before)


class Stop(Exception):
    """What a handler of a signal raises in these tests."""


@pytest.fixture
def on_signal() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Sets the handler of SIGUSR1, as a function without arguments. Afterwards it is as before."""
    before = signal.getsignal(signal.SIGUSR1)

    def set_handler(handler: Callable[[], object]) -> None:
        signal.signal(signal.SIGUSR1, lambda *_: handler())

    yield set_handler
    signal.signal(signal.SIGUSR1, before)


def signal_when_driving(loop: Loop) -> None:
    """Have a signal come in the middle of the loop's work, as soon as the main thread does that."""
    if threading.current_thread() is threading.main_thread():
        signal.raise_signal(signal.SIGUSR1)
    else:
        loop.call_later(0.01, signal_when_driving, loop)


def wait_for_handler(loop: Loop, ran: list[Any]) -> None:
    """Wait as a caller until a handler has noted something."""
    never: Future[object] = Future()
    loop.call_later(0, signal_when_driving, loop)
    end = loop.now() + EVENT_TIMEOUT
    while not ran and loop.now() < end:
        loop.wait_for(never, loop.now() + 0.1)


def test_a_handler_of_a_signal_may_wait_for_others(loop: Loop, on_signal: Any) -> None:
    """It joins a thread that waits for an answer: the loop is driven while the handler runs on the main thread."""
    answers: list[bool] = []

    def handler() -> None:
        other = threading.Thread(
            target=lambda: answers.append(loop.wait_for(answered(loop), loop.now() + EVENT_TIMEOUT))
        )
        other.start()
        other.join()

    on_signal(handler)
    wait_for_handler(loop, answers)
    assert answers == [True]


def test_a_handler_of_a_signal_may_close_the_loop(loop: Loop, on_signal: Any) -> None:
    """`close` waits for the end of the loop there too, though the main thread drove it when the signal came."""
    closed: list[bool] = []

    def handler() -> None:
        loop.close()
        closed.append(loop.closed)

    on_signal(handler)
    wait_for_handler(loop, closed)
    assert closed == [True]


def test_signals_come_while_a_handler_goes_on_that_has_waited(loop: Loop, on_signal: Any) -> None:
    """A handler that makes a call, and does more after it, can be interrupted as before."""
    ran: list[object] = []

    def handler() -> None:
        on_signal(lambda: ran.append("second"))
        ran.append(loop.wait_for(answered(loop), loop.now() + EVENT_TIMEOUT))
        signal.raise_signal(signal.SIGUSR1)
        ran.append("first")

    on_signal(handler)
    wait_for_handler(loop, ran)
    assert ran == [True, "second", "first"]


def test_a_second_signal_does_not_keep_the_turn(loop: Loop, on_signal: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Ctrl-C twice: the second one, which comes while the turn is given back, is raised when that is done."""
    raised: list[bool] = []
    before_sleep = loop.before_sleep

    def handler() -> None:
        raised.append(True)
        raise Stop

    def write(is_over: bool) -> float:
        if raised and threading.current_thread() is threading.main_thread():
            loop.before_sleep = before_sleep
            signal.raise_signal(signal.SIGUSR1)
        return before_sleep(is_over)

    on_signal(handler)
    loop.before_sleep = write
    with pytest.raises(Stop) as found:
        wait_for_handler(loop, raised)
    assert isinstance(found.value.__context__, Stop)
    assert not loop.is_here
    assert not caplog.records


def test_handlers_run_in_the_order_of_their_signals() -> None:
    """Of several that were put off, the first to come is the first to be handled."""
    ran: list[str] = []
    numbers = (signal.SIGUSR2, signal.SIGUSR1, signal.SIGHUP)
    before = {
        number: signal.signal(number, lambda number, _: ran.append(signal.Signals(number).name)) for number in numbers
    }
    held = HeldSignals(lambda: None)
    try:
        held.hold()
        for number in numbers:
            signal.raise_signal(number)
        assert not ran
        held.release()
        assert ran == [number.name for number in numbers]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("kept", [False, True], ids=["any thread drives", "its own thread drives"])
def test_a_function_that_the_loop_calls_cannot_wait_for_it(
    loop: Loop, kept: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It gets an error at once, on whatever thread it runs, and no step begins in the middle of another."""
    if kept:
        loop.keep_thread()
    waits: list[int] = []
    errors: dict[bool, Exception] = {}

    def wait(*_args: object) -> None:
        assert not waits  # Otherwise another step has begun.
        waits.append(1)
        try:
            loop.wait_for(answered(loop), loop.now() + EVENT_TIMEOUT)
        except MessagingException as exc:
            errors[threading.current_thread() is threading.main_thread()] = exc
        waits.clear()

    wanted = {False} if kept else {False, True}
    end = loop.now() + EVENT_TIMEOUT
    while set(errors) != wanted and loop.now() < end:
        future = answered(loop)  # This thread drives, or the loop's.
        future.add_done_callback(wait)
        loop.wait_for(future, loop.now() + EVENT_TIMEOUT)
        called = threading.Event()  # The loop's own thread drives.
        loop.call_later(0, wait)
        loop.call_later(0, called.set)
        assert called.wait(EVENT_TIMEOUT)
    assert set(errors) == wanted
    assert not caplog.records
    loop.write_rest = wait
    loop.call(lambda: None)
    assert loop.wait_for(answered(loop), loop.now() + EVENT_TIMEOUT)
    loop.write_rest = None
    assert not caplog.records
