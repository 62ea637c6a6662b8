from __future__ import annotations

import logging
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from msgbus.conformance.waiting import until
from msgbus.drivers.toolkit.loop import Loop
from msgbus.executor import EAGER, Executor
from tests.support import EVENT_TIMEOUT


@pytest.fixture
def loop() -> Iterator[Loop]:
    """A loop, closed in the end."""
    loop = Loop("test")
    yield loop
    loop.close()


class Later(Loop):
    """A loop that nobody drives, and whose time the test makes pass."""

    def __init__(self) -> None:
        super().__init__("later")
        self.due: list[Callable[[], None]] = []

    def call_later(self, _delay: float, func: Callable[..., Any], *args: Any) -> None:
        self.due.append(partial(func, *args))

    def run(self) -> None:
        due, self.due = self.due, []
        for func in due:
            func()


def threads(name: str) -> list[threading.Thread]:
    """The threads whose names begin so."""
    return [thread for thread in threading.enumerate() if thread.name.startswith(name)]


class Held:
    """Items that run until they are let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.begun = threading.Semaphore(0)

    def __call__(self, _item: object) -> None:
        self.begun.release()
        assert self.let_go.wait(EVENT_TIMEOUT)

    def wait_for(self, count: int) -> None:
        for _ in range(count):
            assert self.begun.acquire(timeout=EVENT_TIMEOUT)

    def more_begin(self) -> bool:
        return self.begun.acquire(timeout=0)


def test_starts_no_thread_before_there_is_work(request: pytest.FixtureRequest) -> None:
    """An executor that was given nothing has no thread, and closes at once."""
    executor = Executor[int](8, print, request.node.name, Later())
    assert not threads(request.node.name)
    assert executor.close(None) == 0


def test_runs_every_item_once(loop: Loop) -> None:
    """What is submitted runs, each item once, and has run when `close` returns."""
    ran: list[int] = []
    executor = Executor[int](4, ran.append, "run", loop)
    for item in range(1000):
        executor.submit(item)
    assert executor.close(EVENT_TIMEOUT) == 0
    assert sorted(ran) == list(range(1000))


def test_one_item_after_another_needs_one_thread(request: pytest.FixtureRequest) -> None:
    """A thread that has nothing to do is used again before another one is started."""
    name = request.node.name
    ran = threading.Semaphore(0)
    executor = Executor[int](8, lambda _item: ran.release(), name, Later())
    for item in range(50):
        executor.submit(item)
        assert ran.acquire(timeout=EVENT_TIMEOUT)
        # It is idle as soon as it has looked for more: nothing else happens to it.
        while not executor._idle:
            pass
    assert len(threads(name)) == 1
    executor.close(EVENT_TIMEOUT)


def test_an_item_that_comes_while_a_thread_turns_idle_starts_no_other(request: pytest.FixtureRequest) -> None:
    """Where an item is submitted just as a thread becomes idle, that thread runs it, and no other is started."""
    name = request.node.name
    ran: list[str] = []
    executor: Executor[str]

    class Idle(list[Any]):
        def append(self, worker: Any) -> None:
            super().append(worker)
            if ran == ["first"]:
                executor.submit("second")

    executor = Executor[str](8, ran.append, name, Later())
    executor._idle = Idle()
    executor.submit("first")
    while len(ran) < 2:
        pass
    assert len(executor._workers) == 1
    executor.close(EVENT_TIMEOUT)
    assert ran == ["first", "second"]


def test_a_few_threads_are_started_at_once() -> None:
    """While few items run, each further one is given a thread without waiting."""
    held = Held()
    executor = Executor[int](EAGER + 10, held, "eager", Later())
    for item in range(EAGER):
        executor.submit(item)
    held.wait_for(EAGER)
    held.let_go.set()
    assert executor.close(EVENT_TIMEOUT) == 0


def test_items_that_wait_for_stuck_ones_get_threads_of_their_own() -> None:
    """Behind items that are stuck, others get a thread after a moment: up to the executor's size, and no more."""
    held, later = Held(), Later()
    executor = Executor[int](EAGER + 3, held, "stuck", later)
    for item in range(EAGER + 5):
        executor.submit(item)
    held.wait_for(EAGER)
    while not held.more_begin():
        later.run()
    while len(executor._workers) < EAGER + 3:
        later.run()
    later.run()
    held.wait_for(2)
    assert not held.more_begin()
    assert len(executor._workers) == EAGER + 3
    held.let_go.set()
    assert executor.close(EVENT_TIMEOUT) == 0
    held.wait_for(2)


@pytest.mark.parametrize("size", [1, 2])
def test_never_more_threads_than_its_size(size: int, request: pytest.FixtureRequest, loop: Loop) -> None:
    """However much is submitted, no more items run at the same time than the size says."""
    name = f"{request.node.originalname}{size}"
    held = Held()
    executor = Executor[int](size, held, name, loop)
    for item in range(100):
        executor.submit(item)
    held.wait_for(size)
    assert len(threads(name)) == size
    held.let_go.set()
    assert executor.close(EVENT_TIMEOUT) == 0
    held.wait_for(100 - size)


def test_backlog_is_what_no_thread_has_begun() -> None:
    """`take_backlog` takes out, in their order, the items that have not begun: they do not run."""
    held = Held()
    executor = Executor[int](1, held, "backlog", Later())
    executor.submit(0)
    held.wait_for(1)
    for item in range(1, 5):
        executor.submit(item)
    assert executor.take_backlog() == [1, 2, 3, 4]
    assert executor.take_backlog() == []
    held.let_go.set()
    assert executor.close(EVENT_TIMEOUT) == 0
    assert not held.more_begin()


def test_close_says_how_many_still_run() -> None:
    """`close` with a time limit returns how many threads are still running then, and they may end later."""
    held = Held()
    executor = Executor[int](2, held, "close", Later())
    executor.submit(0)
    executor.submit(1)
    held.wait_for(2)
    assert executor.close(0) == 2
    held.let_go.set()
    assert executor.close(EVENT_TIMEOUT) == 0
    assert executor.close(None) == 0


def test_close_from_one_of_its_own_items() -> None:
    """An item may close the executor that runs it: it does not wait for itself."""
    left: list[int] = []
    executor: Executor[int]

    def close(_item: int) -> None:
        left.append(executor.close(EVENT_TIMEOUT))

    executor = Executor[int](1, close, "itself", Later())
    executor.submit(0)
    assert executor.close(EVENT_TIMEOUT) == 0
    assert left == [0]


def test_close_while_a_thread_is_being_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """`close` waits for a thread that another thread is just starting."""
    start = threading.Thread.start
    errors: list[BaseException] = []
    executor = Executor[int](1, lambda _item: None, "starting", Later())

    def close() -> None:
        try:
            executor.close(EVENT_TIMEOUT)
        except BaseException as exc:
            errors.append(exc)
        finally:
            closed.set()

    closed = threading.Event()
    closer = threading.Thread(target=close)

    def closed_in_between(thread: threading.Thread) -> None:
        if thread.name.startswith("starting"):
            start(closer)
            # Where nothing keeps `close` from going on, it does so at once.
            while not closed.is_set() and not executor._starting.locked():
                pass
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", closed_in_between)
    executor.submit(0)
    closer.join(EVENT_TIMEOUT)
    assert closed.is_set()
    assert not errors


def test_ctrl_c_while_a_thread_is_being_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread counts like others: there are no more than there may be, and `close` waits for it."""
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        monkeypatch.undo()
        start(thread)
        signal.raise_signal(signal.SIGINT)

    held = Held()
    executor = Executor[int](1, held, "interrupted", Later())
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        executor.submit(0)
    held.wait_for(1)
    executor.submit(1)
    assert len(threads("interrupted")) == 1
    assert executor.close(0) == 1
    held.let_go.set()
    assert executor.close(EVENT_TIMEOUT) == 0
    held.wait_for(1)


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(1), KeyboardInterrupt()], ids=repr)
def test_an_item_that_fails_costs_no_thread(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever an item raises is logged, and its thread runs the next one."""
    ran: list[BaseException | None] = []

    def run(item: BaseException | None) -> None:
        ran.append(item)
        if item is not None:
            raise item

    executor = Executor[BaseException | None](1, run, "fails", Later())
    for item in (error, None, error, None):
        executor.submit(item)
    assert executor.close(EVENT_TIMEOUT) == 0
    assert ran == [error, None, error, None]
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.ERROR]


def test_frees_an_item_when_it_is_done() -> None:
    """An item does not live on until its thread gets the next one."""
    import gc
    import weakref

    class Item:
        pass

    done = threading.Event()
    executor = Executor[Item](1, lambda _item: done.set(), "let-go", Later())
    item = Item()
    gone = threading.Event()
    weakref.finalize(item, gone.set)
    executor.submit(item)
    del item
    assert done.wait(EVENT_TIMEOUT)
    gc.collect()
    assert gone.wait(EVENT_TIMEOUT)
    executor.close(EVENT_TIMEOUT)


@pytest.mark.parametrize("size", [1, 3, 16])
def test_nothing_is_left_lying_under_stress(size: int, loop: Loop) -> None:
    """Thousands of items from several threads, in bursts with pauses between them, all run: no wake-up is lost."""
    submitters, bursts, burst = 4, 40, 15
    ran = threading.Semaphore(0)
    executor = Executor[int](size, lambda _item: ran.release(), "stress", loop)
    together = threading.Barrier(submitters, timeout=EVENT_TIMEOUT)

    def submit() -> None:
        for _ in range(bursts):
            together.wait()
            for item in range(burst):
                executor.submit(item)
            # Before the next burst all of it has run, without anything further being submitted: a lost item shows.
            together.wait()
            for _ in range(burst):
                assert ran.acquire(timeout=EVENT_TIMEOUT)
            together.wait()

    failed: list[BaseException] = []

    def guarded() -> None:
        try:
            submit()
        except BaseException as exc:
            failed.append(exc)
            together.abort()

    all_threads = [threading.Thread(target=guarded) for _ in range(submitters)]
    for thread in all_threads:
        thread.start()
    for thread in all_threads:
        thread.join(EVENT_TIMEOUT * 2)
    assert not failed
    assert executor.close(EVENT_TIMEOUT) == 0
    assert not ran.acquire(timeout=0)


def test_close_under_stress_runs_all_that_was_submitted(loop: Loop) -> None:
    """However the end coincides with threads that become idle, what was submitted before `close` has run after it."""
    for _ in range(200):
        ran: list[int] = []
        executor = Executor[int](3, ran.append, "end", loop)
        for item in range(10):
            executor.submit(item)
        assert executor.close(EVENT_TIMEOUT) == 0
        assert sorted(ran) == list(range(10))


def test_an_item_that_comes_just_before_close_runs() -> None:
    """Where an item is submitted, and the executor closed, just as its only thread has found nothing, it runs."""
    ran: list[int] = []
    closers: list[threading.Thread] = []
    executor = Executor[int](1, ran.append, "just-before", Later())

    class Backlog(deque[Any]):
        def popleft(self) -> Any:
            if not self and ran and not closers:
                executor.submit(2)
                closer = threading.Thread(target=executor.close, args=(EVENT_TIMEOUT,))
                closer.start()
                closers.append(closer)
                while not executor._closed:
                    pass
                raise IndexError
            return super().popleft()

    executor._backlog = Backlog()
    executor.submit(1)
    while not closers:
        pass
    closers[0].join(EVENT_TIMEOUT)
    assert ran == [1, 2]


def test_no_thread_for_a_moment_costs_no_item(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the operating system gives no thread, what was submitted is run once it does."""
    start = threading.Thread.start
    refused: list[threading.Thread] = []

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("scarce") and len(refused) < 2:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr("msgbus.executor.START_AGAIN", 0.01)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    ran = threading.Semaphore(0)
    executor: Executor[int] = Executor(2, lambda _item: ran.release(), "scarce", loop)
    for item in range(5):
        executor.submit(item)
    for _ in range(5):
        assert ran.acquire(timeout=EVENT_TIMEOUT)
    assert len(refused) == 2
    assert executor.close(EVENT_TIMEOUT) == 0


@pytest.mark.parametrize("error", [SystemExit(), KeyboardInterrupt(), GeneratorExit()])
def test_no_item_costs_a_thread(loop: Loop, error: BaseException) -> None:
    """Whatever an item raises, its thread goes on, and so does the loop's."""

    class Hostile(BaseException):
        def __str__(self) -> str:
            raise error

    done = threading.Event()

    def fail(_item: object) -> None:
        raise Hostile

    executor: Executor[int] = Executor(1, fail, "hardy", loop)
    for item in range(3):
        executor.submit(item)
    assert executor.close(EVENT_TIMEOUT) == 0
    loop.call_later(0, lambda: fail(None))
    loop.call_later(0, done.set)
    assert done.wait(EVENT_TIMEOUT)


class Urgency:
    """Items are numbers, and the negative ones are urgent. Those that are positive wait until `go_on` is set.

    Attributes:
        ran: what was run, in order.
        during_look: submitted as soon as waiting items are looked at.
    """

    def __init__(self, loop: Loop, size: int) -> None:
        self.ran: list[int] = []
        self.go_on = threading.Event()
        self.began = threading.Semaphore(0)
        self.during_look: list[int] = []
        self.executor: Executor[int] = Executor(size, self._run, "urgent", loop, self._is_urgent)

    def _is_urgent(self, item: int) -> bool:
        while self.during_look:
            self.executor.submit(self.during_look.pop())
        return item < 0

    def _run(self, item: int) -> None:
        self.began.release()
        if item > 0:
            assert self.go_on.wait(EVENT_TIMEOUT)
        if item == -99:
            raise KeyError(item)
        self.ran.append(item)

    def fill(self, count: int) -> None:
        """Have all threads busy."""
        for item in range(1, count + 1):
            self.executor.submit(item)
            assert self.began.acquire(timeout=EVENT_TIMEOUT)

    def end(self) -> None:
        """Let all go on, and wait for the end."""
        self.go_on.set()
        assert self.executor.close(EVENT_TIMEOUT) == 0


@pytest.mark.parametrize("size", [1, 3, 6])
def test_what_is_urgent_is_run_while_all_threads_are_busy(loop: Loop, size: int) -> None:
    """Whether it comes before or after others that wait. These go on waiting, in their order."""
    urgency = Urgency(loop, size)
    urgency.fill(size)
    for item in (-1, 50, -2, 51, -3):
        urgency.executor.submit(item)
    until(lambda: sorted(urgency.ran) == [-3, -2, -1], "the urgent ones")
    assert urgency.executor.load.threads == (size, size, 2)
    urgency.end()
    assert set(urgency.ran[3:]) == {*range(1, size + 1), 50, 51}


def test_what_is_urgent_is_found_when_it_comes_during_a_look(loop: Loop) -> None:
    """That look does not see it, and another one follows."""
    urgency = Urgency(loop, 1)
    urgency.fill(1)
    urgency.during_look.append(-1)
    urgency.executor.submit(50)
    until(lambda: urgency.ran == [-1], "the urgent one")
    urgency.end()


def test_what_is_urgent_is_found_when_it_comes_just_before_the_next_look() -> None:
    """It has not waited long enough then, and is looked for again."""
    loop = Later()
    urgency = Urgency(loop, 1)
    urgency.fill(1)
    urgency.executor.submit(-1)

    def looked() -> bool:
        loop.run()
        return urgency.ran == [-1]

    until(looked, "the urgent one")
    urgency.end()
    loop.close()


def test_an_urgent_item_that_raises_costs_the_next_one_nothing(loop: Loop) -> None:
    """As on the other threads."""
    urgency = Urgency(loop, 1)
    urgency.fill(1)
    urgency.executor.submit(-99)
    until(lambda: urgency.executor.load.threads.waiting == 0, "the one that raises")
    urgency.executor.submit(-1)
    until(lambda: urgency.ran == [-1], "the next one")
    urgency.end()


def test_what_is_urgent_takes_no_thread_of_its_own_while_one_is_free(loop: Loop) -> None:
    """It is run as all else is."""
    urgency = Urgency(loop, 2)
    urgency.fill(1)
    urgency.executor.submit(-1)
    until(lambda: urgency.ran == [-1], "the urgent one")
    assert not [thread for thread in threading.enumerate() if thread.name == "urgent-urgent"]
    urgency.end()


def test_what_is_urgent_waits_where_there_is_no_thread_for_it(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not lost: there is another try when more comes, and else the next one that is free runs it."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "urgent-urgent" and not refused.is_set():
            refused.set()
            raise RuntimeError("can't start new thread")
        start(thread)

    refused = threading.Event()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    urgency = Urgency(loop, 1)
    urgency.fill(1)
    urgency.executor.submit(50)
    urgency.executor.submit(-1)
    assert refused.wait(EVENT_TIMEOUT)
    urgency.executor.submit(-2)
    until(lambda: sorted(urgency.ran) == [-2, -1], "the urgent ones")
    urgency.end()
    assert urgency.ran[2:] == [1, 50]
