"""Workers that drive the loop and run what they have read, held at the points where that could go wrong."""

from __future__ import annotations

import ctypes
import os
import threading
import time
import types
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from msgbus import RemoteError, RPCClient, Target, TransportUnavailable, get_rpc_server
from msgbus.conformance.waiting import Task, until
from msgbus.drivers.toolkit.loop import FOREVER, Loop
from msgbus.drivers.toolkit.poller import Poller
from msgbus.executor import EAGER, SHORT, Executor, _count_waits
from tests.support import EVENT_TIMEOUT, new_transport


class Held(Loop):
    """A loop whose driving thread can be held right before other threads have to wake it."""

    def __init__(self) -> None:
        super().__init__("held")
        self.before_asleep: Callable[[], None] = lambda: None

    def _fall_asleep(self) -> None:
        self.before_asleep()
        super()._fall_asleep()


def take_turn(loop: Loop) -> None:
    """Take the turn, which the loop's own thread may have."""
    never = threading.Lock()
    never.acquire()
    while not loop.take_turn():
        loop.call(lambda: None)  # After that its thread gives the turn to one that waits.
        loop.wait(never, loop.now() + 0.01)


class Executed:
    """An executor of short items, whose only idle worker drives the loop."""

    def __init__(self, loop: Loop, size: int = 8) -> None:
        self.loop = loop
        self.ran = threading.Semaphore(0)
        self.handler: Callable[[Any], None] = lambda _item: None
        self.executor = Executor[Any](size, self._run, "short", loop)
        self.executor._average = SHORT / 100
        self.executor.submit("first")
        self.wait()
        until(self.drives, "an idle worker drives the loop", EVENT_TIMEOUT)

    def _run(self, item: Any) -> None:
        self.handler(item)
        self.ran.release()

    def drives(self) -> bool:
        """Whether a worker drives the loop, and sleeps. Else the loop's own thread is asked to let it."""
        workers = [worker.thread.ident for worker in self.executor._workers]
        if self.loop._turn.owner in workers and not self.loop.awake:
            return True
        self.loop.call(lambda: None)
        return False

    def read(self, *items: Any) -> None:
        """Have whichever thread drives read some items at once."""

        def submit() -> None:
            for item in items:
                self.executor.submit(item)

        self.loop.call(submit)

    def wait(self, count: int = 1) -> None:
        for _ in range(count):
            assert self.ran.acquire(timeout=EVENT_TIMEOUT)


@pytest.fixture
def loop() -> Iterator[Held]:
    """A loop, closed in the end."""
    loop = Held()
    loop.call(lambda: None)
    yield loop
    loop.before_asleep = lambda: None
    loop.close()


@pytest.fixture
def executed(loop: Held) -> Iterator[Executed]:
    """An executor on it, closed before that."""
    executed = Executed(loop)
    yield executed
    assert executed.executor.close(EVENT_TIMEOUT) == 0


def test_a_thread_is_woken_that_is_about_to_sleep(loop: Held) -> None:
    """A thread that drives the loop and waits returns, also when it is woken just before it falls asleep."""
    ready = threading.Lock()
    ready.acquire()
    returned = threading.Event()
    woken: list[bool] = []

    def wake_just_before() -> None:
        if not woken and threading.current_thread() is waiter:
            woken.append(True)
            waker = threading.Thread(target=loop.wake, args=(ready,))
            waker.start()
            waker.join()

    def wait() -> None:
        take_turn(loop)
        loop.step()
        loop.before_asleep = wake_just_before
        loop.wait(ready, FOREVER)
        loop.give_turn()
        returned.set()

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    try:
        assert returned.wait(EVENT_TIMEOUT)
        assert woken
    finally:
        loop.call(lambda: None)


def test_an_item_is_run_by_a_worker_that_is_about_to_sleep(executed: Executed, loop: Held) -> None:
    """An item that another thread submits just before the idle worker falls asleep runs at once."""
    submitted: list[bool] = []

    def submit_just_before() -> None:
        if not submitted and executed.executor._workers[0].thread is threading.current_thread():
            submitted.append(True)
            other = threading.Thread(target=executed.executor.submit, args=("second",))
            other.start()
            other.join()

    loop.before_asleep = submit_just_before
    loop.call(lambda: None)
    executed.wait()
    assert submitted


def test_close_ends_a_worker_that_is_about_to_sleep(loop: Held) -> None:
    """`Executor.close` without a time limit returns, whatever the idle worker does just then."""
    executed = Executed(loop)
    closing: list[threading.Thread] = []

    def close_just_before() -> None:
        if not closing and executed.executor._workers[0].thread is threading.current_thread():
            closer = threading.Thread(target=executed.executor.close, args=(None,), daemon=True)
            closer.start()
            closing.append(closer)
            until(lambda: executed.executor._closed and not executed.executor._idle, "it was woken", EVENT_TIMEOUT)

    loop.before_asleep = close_just_before
    loop.call(lambda: None)
    until(lambda: closing, "it is closed", EVENT_TIMEOUT)
    closing[0].join(EVENT_TIMEOUT)
    assert not closing[0].is_alive()


def test_a_thread_that_gives_the_turn_back_leaves_the_next_one_to_be_woken(loop: Held) -> None:
    """A thread that takes over is woken by calls, however late its predecessor gets on after it has let go."""
    first_let_go, second_sleeps, ran = threading.Event(), threading.Event(), threading.Event()

    class Calls(deque[Any]):
        """Holds the first thread where it looks whether there are calls, until the second one sleeps again."""

        def __bool__(self) -> bool:
            found = len(self) > 0
            if threading.current_thread() is first and first_let_go.is_set() and not second_sleeps.is_set():
                self.append((found.__bool__, ()))
                found = True
                second.start()
                until(lambda: loop._turn.owner == second.ident and not loop.awake and not len(self), "it sleeps", 10)
                second_sleeps.set()
            return found

    def lead() -> None:
        take_turn(loop)
        release = loop._turn.release

        def release_and_say() -> None:
            release()
            first_let_go.set()
            loop._turn.release = release  # type: ignore[method-assign]

        loop._turn.release = release_and_say  # type: ignore[method-assign]
        loop.give_turn()

    ready = threading.Lock()
    ready.acquire()

    def follow() -> None:
        take_turn(loop)
        loop.wait(ready, FOREVER)
        loop.give_turn()

    first, second = threading.Thread(target=lead, daemon=True), threading.Thread(target=follow, daemon=True)
    until(lambda: not loop.awake, "the loop's thread sleeps", EVENT_TIMEOUT)
    loop._calls = Calls()
    first.start()
    first.join(EVENT_TIMEOUT)
    assert second_sleeps.is_set()
    loop.call(ran.set)
    assert ran.wait(EVENT_TIMEOUT)
    loop.wake(ready)
    second.join(EVENT_TIMEOUT)
    assert not second.is_alive()


def test_the_loop_closes_while_an_idle_worker_drives_it() -> None:
    """A transport that is closed before its servers gets the loop back from their workers, and ends."""
    loop = Held()
    executed = Executed(loop)
    loop.close()
    assert loop.closed
    assert executed.executor.close(EVENT_TIMEOUT) == 0


def test_the_loop_is_kept_to_its_thread_while_an_idle_worker_drives_it(loop: Held, executed: Executed) -> None:
    """After `keep_thread` everything runs on the loop's own thread."""
    loop.keep_thread()
    until(lambda: loop._turn.owner == loop._thread.ident, "the loop's own thread drives", EVENT_TIMEOUT)  # type: ignore[union-attr]
    names: list[str] = []
    loop.call(lambda: names.append(threading.current_thread().name))
    until(lambda: names, "it runs calls", EVENT_TIMEOUT)
    assert names == ["held"]


def test_what_is_submitted_after_the_end_of_all_threads_runs(loop: Held) -> None:
    """An item that comes when a closed executor has ended its threads is run all the same: it is lost to nobody."""
    ran = threading.Semaphore(0)
    executor = Executor[int](1, lambda _item: ran.release(), "late", loop)
    executor.submit(1)
    assert executor.close(EVENT_TIMEOUT) == 0
    executor.submit(2)
    for _ in range(2):
        assert ran.acquire(timeout=EVENT_TIMEOUT)
    assert executor.close(EVENT_TIMEOUT) == 0


def test_an_item_that_blocks_holds_up_neither_the_loop_nor_other_items(executed: Executed, loop: Held) -> None:
    """Of three items that are read at once the first may wait for the others, and the loop's timers run meanwhile."""
    others, timer = threading.Semaphore(0), threading.Event()

    def handler(item: str) -> None:
        if item == "blocks":
            loop.call_later(0.0, timer.set)
            assert timer.wait(EVENT_TIMEOUT)
            for _ in range(2):
                assert others.acquire(timeout=EVENT_TIMEOUT)
        else:
            others.release()

    executed.handler = handler
    executed.read("blocks", "second", "third")
    executed.wait(3)


def test_an_item_that_never_returns_costs_one_thread(executed: Executed) -> None:
    """The others go on: the loop is driven, and what is read runs."""
    let_go = threading.Event()
    executed.handler = lambda item: None if item != "stuck" else (let_go.wait(), None)[1]
    executed.read("stuck")
    for _ in range(20):
        executed.read("item")
        executed.wait()
    let_go.set()
    executed.wait()


@pytest.mark.parametrize(
    ("seconds", "waits", "short"),
    [(0.0003, False, True), (0.0003, True, False), (0.00005, True, True), (0.0006, False, False), (2.0, True, False)],
)
def test_items_that_wait_are_left_to_several_threads(
    seconds: float, waits: bool, short: bool, loop: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However short they are, no thread that drives the loop runs them one after another: they can wait together."""
    counts = types.SimpleNamespace(now=0.0, waits=0)

    def run(_item: int) -> None:
        counts.now += seconds
        counts.waits += waits

    monkeypatch.setattr("msgbus.executor.Loop", types.SimpleNamespace(now=lambda: counts.now))
    monkeypatch.setattr("msgbus.executor._count_waits", lambda: counts.waits)
    executor = Executor[int](1, run, "waits", loop)
    for number in range(500):
        executor.submit(number)
    assert executor.close(None) == 0
    assert executor._is_short is short


def test_a_thread_knows_whether_it_has_waited() -> None:
    """By what the system says of it."""
    before = _count_waits()
    time.sleep(0.0001)
    assert _count_waits() > before


def test_no_worker_is_idle_twice(executed: Executed) -> None:
    """However a worker is woken, it is among the idle ones once at most, and not when it works."""
    seen: list[int] = []
    idle = executed.executor._idle

    def handler(_item: str) -> None:
        me = executed.executor._workers_by_thread[threading.get_ident()]
        seen.append(idle.count(me))

    executed.handler = handler
    for count in range(50):
        if count % 2:
            executed.read(*["item"] * 3)
        else:
            for _ in range(3):
                executed.executor.submit("item")
        executed.wait(3)
    assert set(seen) == {0}
    until(lambda: len(idle) == len(executed.executor._workers), "all are idle", EVENT_TIMEOUT)
    assert len({id(worker) for worker in idle}) == len(idle)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_whatever_a_short_item_raises_its_thread_drives_on(
    executed: Executed, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """`sys.exit()` in a handler costs neither the loop nor a thread."""

    def handler(item: str) -> None:
        if item == "raises":
            raise error

    executed.handler = handler
    executed.read("raises", "item")
    executed.wait()
    executed.read("item")
    executed.wait()
    assert len(executed.executor._workers) == len(executed.executor._workers_by_thread)
    assert "an item of a worker thread raised" in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_is_ended_while_it_drives_leaves_the_loop_to_others(executed: Executed, loop: Held) -> None:
    """Some libraries raise exceptions in other threads: then the loop goes on, and another worker starts."""
    ended = executed.executor._workers[0].thread
    assert ended.ident is not None
    # While coverage is measured, CPython 3.11 calls no Python function in other threads until that one has its
    # exception: so its sleep has to end without this thread.
    loop.call_later(0.2, lambda: None)
    number, error = ctypes.c_ulong(ended.ident), ctypes.py_object(SystemExit)
    assert ctypes.pythonapi.PyThreadState_SetAsyncExc(number, error) == 1
    loop.call(lambda: None)  # Ends its sleep.
    ended.join(EVENT_TIMEOUT)
    assert not ended.is_alive()
    called = threading.Event()
    loop.call(called.set)
    assert called.wait(EVENT_TIMEOUT)
    executed.read("item")
    executed.wait()


class Endpoint:
    """Methods that are short, unless a test has them held."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.let_go = threading.Event()
        self.other: Callable[[int], Any] = lambda _depth: None
        self.children: list[int] = []

    def quick(self, _ctxt: object) -> int:
        return threading.get_ident()

    def held(self, _ctxt: object) -> str:
        self.begun.release()
        assert self.let_go.wait(EVENT_TIMEOUT)
        return "let go"

    def nested(self, _ctxt: object, depth: int) -> int:
        return 1 + self.other(depth - 1) if depth else 0

    def leaves(self, _ctxt: object) -> None:
        raise SystemExit(3)

    def forks(self, _ctxt: object) -> str:
        child = os.fork()
        self.children.append(child)
        return "parent" if child else "child"


class Service:
    """A server over ZeroMQ, all of whose methods count as short, and a client with a transport of its own."""

    def __init__(self, url: str) -> None:
        self.endpoint = Endpoint()
        self.transport, self.clients = new_transport(url), new_transport(url)
        self.server = get_rpc_server(self.transport, Target(topic="short", server="s"), [self.endpoint])
        self.server.start()
        self.client = RPCClient(self.clients, Target(topic="short"), timeout=EVENT_TIMEOUT)
        own = RPCClient(self.transport, Target(topic="short"), timeout=EVENT_TIMEOUT)
        self.endpoint.other = lambda depth: own.call({}, "nested", depth=depth)
        self.executor: Executor[Any] = self.server._executor  # type: ignore[assignment]
        self.run_where_it_is_read()

    def run_where_it_is_read(self) -> None:
        """Call until a worker has read a request and still has the turn when it runs it."""

        def is_here() -> bool:
            self.executor._average = SHORT / 100
            return bool(self.client.call({}, "quick") == self.transport.loop._turn.owner)

        until(is_here, "a worker runs what it has read", EVENT_TIMEOUT)


@pytest.fixture
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A server and a client; in the end nothing is unfinished."""
    service = Service(f"zmq://?run_dir={tmp_path_factory.mktemp('t')}")
    yield service
    service.endpoint.let_go.set()
    service.server.stop()
    assert service.server.wait(EVENT_TIMEOUT) == 0
    service.clients.cleanup()
    service.transport.cleanup()


def test_nested_calls_of_short_methods(service: Service) -> None:
    """Methods that call their own server over its own transport, deeper than it has threads at once, are answered."""
    for depth in (1, EAGER, 2 * EAGER):
        service.run_where_it_is_read()
        assert service.client.call({}, "nested", depth=depth) == depth


def test_a_method_that_blocks_on_the_thread_that_has_read_it(service: Service) -> None:
    """Other calls are answered meanwhile, and the transport's timers run: keepalives and heartbeats are among them."""
    held = Task(service.client.call, {}, "held")
    assert service.endpoint.begun.acquire(timeout=EVENT_TIMEOUT)
    timer = threading.Event()
    service.transport.loop.call_later(0.0, timer.set)
    assert timer.wait(EVENT_TIMEOUT)
    for _ in range(2 * EAGER):
        service.client.call({}, "quick")
    service.endpoint.let_go.set()
    assert held.result() == "let go"


def test_a_server_with_a_method_that_does_not_return_stops(service: Service) -> None:
    """`stop` and `wait` of a server whose worker has read the request and is stuck in it end in time."""
    held = Task(service.client.call, {}, "held")
    assert service.endpoint.begun.acquire(timeout=EVENT_TIMEOUT)
    service.server.stop()
    assert service.server.wait(0.1) == 1
    service.endpoint.let_go.set()
    assert held.result() == "let go"


def test_a_short_method_that_leaves_or_forks(service: Service) -> None:
    """`sys.exit()` is an exception like others; a forked child ends with its method; and the server goes on."""
    with pytest.raises(RemoteError, match="SystemExit"):
        service.client.call({}, "leaves")
    service.run_where_it_is_read()
    assert service.client.call({}, "forks") == "parent"
    assert os.waitstatus_to_exitcode(os.waitpid(service.endpoint.children[0], 0)[1]) == 0
    service.run_where_it_is_read()


def test_cleanup_before_the_server_is_stopped(service: Service) -> None:
    """A transport whose idle worker drives its loop closes at once, and the server can be stopped after that."""
    service.transport.cleanup()
    assert service.transport.loop.closed


class Broken(Executed):
    """An executor whose idle worker sleeps in the loop, while other code closes the loop's descriptors.

    Attributes:
        readers: the threads that have read the test's pipe.
    """

    def __init__(self, loop: Held) -> None:
        super().__init__(loop)
        self.readers: list[threading.Thread] = []
        self.reading, self.writing = os.pipe()
        watched = threading.Event()

        def read() -> None:
            self.readers.append(threading.current_thread())
            os.read(self.reading, 1)

        def watch() -> None:
            loop.watch(self.reading, read)
            watched.set()

        loop.call(watch)
        assert watched.wait(EVENT_TIMEOUT)

    def poller(self) -> Poller:
        """What the loop's driving thread sleeps in."""
        assert self.loop._poller is not None
        return self.loop._poller

    def sleeper(self) -> threading.Thread | None:
        """The thread that sleeps in the loop's descriptors."""
        owner = self.loop._turn.owner
        threads = [thread for thread in threading.enumerate() if thread.ident == owner]
        return threads[0] if threads and self.poller().polls and not self.loop.awake else None

    def lose(self) -> None:
        """Other code closes what wakes the loop."""
        os.close(self.poller()._wake)

    def check(self, *stuck: threading.Thread) -> None:
        """Other threads than those drive; this one is woken; nobody reads any more; and the loop can be closed."""
        for _ in range(20):
            found: Future[threading.Thread] = Future()
            self.loop.call_later(0.001, lambda found=found: found.set_result(threading.current_thread()))
            assert self.loop.wait_for(found, self.loop.now() + EVENT_TIMEOUT)
            assert found.result() not in stuck
        with pytest.raises(TransportUnavailable):
            self.loop.call(lambda: None)
        os.write(self.writing, b"x")  # A thread that still sleeps there returns, and finds that it does not drive.
        assert self.executor.close(EVENT_TIMEOUT) == 0
        for thread in stuck:
            thread.join(EVENT_TIMEOUT)
            assert not thread.is_alive()
        self.loop.call_later(0.0, self.loop.unwatch, self.reading)
        self.loop.close()
        assert self.loop.closed
        assert not self.readers
        os.close(self.reading)
        os.close(self.writing)


def test_others_drive_where_an_idle_worker_cannot_be_woken(loop: Held) -> None:
    """Other code has closed the loop's descriptors while a worker slept in it: other threads drive from then on."""
    broken = Broken(loop)
    own = loop._thread
    until(lambda: broken.drives() and broken.sleeper(), "an idle worker drives the loop", EVENT_TIMEOUT)
    broken.lose()
    with pytest.raises(TransportUnavailable):
        loop.call(lambda: None)
    broken.check(*(worker.thread for worker in broken.executor._workers))
    assert loop._thread is own


def test_others_drive_where_the_own_thread_of_a_loop_cannot_be_woken(loop: Held) -> None:
    """It gets another one, and the former ends when something is read."""
    broken = Broken(loop)
    loop.keep_thread()
    own = loop._thread
    assert own is not None
    until(lambda: broken.sleeper() is own, "the loop's own thread drives", EVENT_TIMEOUT)
    broken.lose()
    with pytest.raises(TransportUnavailable):
        loop.call(lambda: None)
    assert loop._thread is not own
    loop._may_be_driven = True  # The executor's worker drives as well.
    broken.check(own)


def test_one_that_waits_drives_where_no_other_thread_can_be_started(
    loop: Held, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The loop's own thread cannot be woken, and the system gives no other: an idle worker drives."""
    broken = Broken(loop)
    loop.keep_thread()
    until(lambda: broken.sleeper() is loop._thread, "the loop's own thread drives", EVENT_TIMEOUT)
    loop._may_be_driven = True
    worker = broken.executor._workers[0].thread
    until(lambda: loop._turn.is_wanted, "the worker waits", EVENT_TIMEOUT)

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    broken.lose()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(TransportUnavailable):
            loop.call(lambda: None)
    assert "can't start new thread" in caplog.text
    until(lambda: loop._turn.owner == worker.ident, "the worker drives", EVENT_TIMEOUT)
    broken.check()


def test_a_worker_that_has_still_to_sleep_notices_that_it_could_not_be_woken(loop: Held) -> None:
    """The descriptors were closed right before: the worker drives on, and runs what it is called for."""
    broken = Broken(loop)
    until(broken.drives, "an idle worker drives the loop", EVENT_TIMEOUT)
    worker = broken.executor._workers[0].thread
    ran: Future[threading.Thread] = Future()

    def lose_just_after(timeout: float, ready: object) -> float:
        """The worker has said that it sleeps, and has found nothing to do."""
        if threading.current_thread() is worker and not loop.awake:
            loop._timeout = timeout_of  # type: ignore[method-assign]
            broken.lose()
            other = threading.Thread(target=loop.call, args=(lambda: ran.set_result(threading.current_thread()),))
            other.start()
            other.join(EVENT_TIMEOUT)
            assert not other.is_alive()
        return timeout_of(timeout, ready)  # type: ignore[arg-type]

    timeout_of = loop._timeout
    loop._timeout = lose_just_after  # type: ignore[assignment]
    loop.call(lambda: None)
    assert ran.result(EVENT_TIMEOUT) is worker
    broken.check()


def test_a_worker_that_is_replaced_right_before_it_sleeps_returns(loop: Held) -> None:
    """The descriptors were closed so late that nobody knew whether it can be woken: it does not sleep for ever."""
    broken = Broken(loop)
    until(broken.drives, "an idle worker drives the loop", EVENT_TIMEOUT)
    poller, worker = broken.poller(), broken.executor._workers[0].thread
    losses: list[OSError | None] = [None]
    outcomes: list[str] = []

    class Late(Poller):
        """The worker, in `sleep`, looks twice whether the descriptors were closed: in between, they are."""

        @property
        def lost(self) -> OSError | None:
            if self is poller and self.polls and not outcomes and threading.current_thread() is worker:
                outcomes.append("")
                broken.lose()
                other = threading.Thread(target=call)
                other.start()
                other.join(EVENT_TIMEOUT)
            return losses[-1]

        @lost.setter
        def lost(self, error: OSError | None) -> None:
            losses.append(error)

    def call() -> None:
        try:
            loop.call(lambda: None)
        except TransportUnavailable as exc:
            outcomes.append(str(exc))

    del poller.__dict__["lost"]
    poller.__class__ = Late
    loop.call(lambda: None)
    until(lambda: len(outcomes) == 2, "the worker is replaced", EVENT_TIMEOUT)
    broken.check()


@pytest.mark.parametrize("is_late", [False, True])
def test_a_thread_that_wakes_by_itself_while_it_is_replaced_does_not_drive(loop: Held, is_late: bool) -> None:
    """It returns to the loop before, or after, it has lost its turn: what it has read is left to nobody."""
    broken = Broken(loop)
    until(lambda: broken.drives() and broken.sleeper(), "an idle worker drives the loop", EVENT_TIMEOUT)
    poller, end = broken.poller(), loop._turn.end

    def wake_worker() -> None:
        os.write(broken.writing, b"x")
        until(lambda: not poller.polls, "the worker returns", EVENT_TIMEOUT)

    def end_late() -> None:
        if not is_late:
            wake_worker()
        end()
        if is_late:
            wake_worker()

    loop._turn.end = end_late  # type: ignore[method-assign]
    broken.lose()
    with pytest.raises(TransportUnavailable):
        loop.call(lambda: None)
    broken.check()
