"""Executor: a server's worker threads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from resource import RUSAGE_THREAD, getrusage
from typing import Any, Generic, NamedTuple, TypeVar

from msgbus.drivers.toolkit.loop import FOREVER, Loop
from msgbus.drivers.toolkit.turn import unlock
from msgbus.foreign import get_logger

LOG = get_logger(__name__)

T = TypeVar("T")


CANCEL_TIMEOUT = 1.0
"""Seconds in which a task that is cancelled has to end, and its request to be answered or given to another server."""


class Interrupted(Exception):
    """The server was stopped while a request ran, and has not waited for it any longer.

    Attributes:
        begun: its method may have run. False: it is known not to have.
    """

    def __init__(self, reason: str, *, begun: bool = True) -> None:
        super().__init__(reason)
        self.begun = begun


def call_plain(func: Callable[..., T], *args: Any) -> T:
    """Call a function for a coroutine, which must not raise `StopIteration`: that is a `RuntimeError`."""
    try:
        return func(*args)
    except StopIteration as exc:
        raise RuntimeError(f"the method raised {exc!r}") from exc


def run_to_end(context: Context, work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that never waits, to its end."""
    try:
        context.run(work.send, None)
    except StopIteration:
        return
    work.close()
    raise RuntimeError("a request waits for something, on a thread that only runs plain methods")


class Busy(NamedTuple):
    """How much of something is in use.

    Attributes:
        busy: how many threads or tasks run something.
        limit: how many may.
        waiting: how many requests (of a server with tasks: plain methods) wait for one.
    """

    busy: int
    limit: int
    waiting: int


class Load(NamedTuple):
    """What a server is occupied with. Where requests are tasks, threads run plain methods, and requests wait for tasks.

    Attributes:
        threads: those that run requests or plain methods.
        tasks: None where requests run on threads.
    """

    threads: Busy
    tasks: Busy | None = None

    @property
    def backlog(self) -> int:
        """How many requests have come, and have not begun."""
        return self.threads.waiting if self.tasks is None else self.tasks.waiting


class _Worker:
    __slots__ = ("reads", "thread", "wake")

    def __init__(self) -> None:
        self.wake = threading.Lock()  # released to make it look for work
        self.wake.acquire()
        self.reads = False  # it runs nothing: what its thread does is to drive the loop, or to wait
        self.thread: threading.Thread


EAGER = 4
"""Threads up to this number are woken immediately when there is work."""
QUICK = 0.005
"""Seconds; items that take less on average are not worth more threads."""
SHORT = 0.0005
"""Seconds; while items take less on average, the thread that has read them runs them, and then reads on."""
WAITS = 0.0001
"""Seconds; unless items that wait, for example for a database, take as much: several threads can wait at once."""
SAMPLE = 16
"""One in so many items is looked at for whether it waits."""
AWAY_MAX = 0.002
"""Seconds for which such a thread may run one after another before it reads and writes again."""
MAX_WAIT = 0.02
"""Seconds that a quick item may wait before it gets another thread all the same."""

START_AGAIN = 1.0
"""Seconds until the next try after the operating system has refused a thread."""


def _count_waits() -> int:
    """How often this thread has waited. What other programs take from the processor does not count."""
    return getrusage(RUSAGE_THREAD).ru_nvcsw


def _never(_item: Any) -> bool:
    return False


class Executor(Generic[T]):
    """Runs `func` on each submitted item, on up to `size` threads.

    Waking a thread costs more than a short handler does, and threads that compete for the interpreter cost more again.
    So while items are quick, a few threads run them one after another; if one of them gets stuck, or if items are slow,
    each item gets a thread.

    An idle thread drives the loop, if no other does, and runs the items that it has read. While items are short it
    keeps the loop's turn meanwhile: their writes are sent together, and no thread has to be woken.

    An urgent item that waits while all threads are busy is run on one more thread, which runs nothing else.
    """

    def __init__(
        self,
        size: int,
        func: Callable[[T], None],
        name: str,
        loop: Loop,
        is_urgent: Callable[[T], bool] = _never,
    ) -> None:
        """Items come from what `loop` reads, mostly. `is_urgent` is quick, and never raises."""
        self._size = size
        self._func = func
        self._name = name
        self._loop = loop
        self._workers_by_thread: dict[int, _Worker] = {}
        self._idle: list[_Worker] = []
        self._backlog: deque[tuple[float, T]] = deque()  # with the time since when each waits
        self._workers: list[_Worker] = []
        self._closers: set[threading.Thread] = set()  # those of the workers that have called `close`
        self._starting = threading.Lock()
        self._average = 2 * SHORT  # seconds that an item takes; until more is known
        self._waits = 0.0  # the same, where those that do not wait count as 0
        self._watching = False
        self._closed = False
        self._next_start = 0.0
        self._is_urgent = is_urgent
        self._spare: threading.Thread | None = None  # runs urgent items; changed under `_starting`

    def submit(self, item: T) -> None:
        """Have `item` run, as soon as there is a thread for it. Never blocks."""
        self._backlog.append((Loop.now(), item))
        reader = self._workers_by_thread.get(threading.get_ident())
        if reader is not None and not reader.reads:
            reader = None
        # Otherwise this thread is in a step of the loop, and looks for work once that is over.
        if reader is not None and self._take_idle(reader):
            unlock(reader.wake)
        elif self._average > QUICK or (
            len(self._workers) - len(self._idle) < EAGER and (reader is None or not self._is_short)
        ):
            if not self._wake_or_start():
                self._watch_later()
        else:
            self._watch_later()

    def _watch_later(self) -> None:
        if not self._watching:
            self._watching = True
            self._loop.call_later(MAX_WAIT, self._watch)

    @property
    def _is_short(self) -> bool:
        """Whether a thread may run items one after another, while nobody drives the loop."""
        return self._average < SHORT and self._waits < WAITS

    def _take_idle(self, worker: _Worker) -> bool:
        """Take a worker out of the idle ones. False: it is none of them, or has been woken already."""
        try:
            self._idle.remove(worker)
        except ValueError:
            return False
        return True

    def _watch(self) -> None:
        """Give more threads to what has waited too long."""
        self._watching = False  # What is submitted from now on may not be seen below.
        now = Loop.now()
        too_early = False
        for since, _ in list(self._backlog):
            too_early = now - since < MAX_WAIT
            if too_early:
                break
            if not self._wake_or_start():
                self._run_urgent()
                break
        # If all threads are busy and there may be no more of them, the next one that is free takes the backlog.
        if self._backlog and (too_early or self._idle or len(self._workers) < self._size):
            self._watch_later()

    # Urgent items

    def _run_urgent(self) -> None:
        """Run the urgent items of the backlog, on a thread for them."""
        with self._starting:
            if self._spare is not None:
                return  # It looks for more when it has run those that it has.
            items = self._take_urgent()
            if not items:
                return
            self._spare = threading.Thread(
                target=self._work_spare, args=(items,), name=f"{self._name}-urgent", daemon=True
            )
            try:
                self._spare.start()
            except RuntimeError as exc:
                LOG.error("no thread can be started for %s: %s", self._name, exc)
                self._spare = None
                self._backlog.extendleft((Loop.now(), item) for item in reversed(items))

    def _take_urgent(self) -> list[T]:
        """Take the urgent items out of the backlog."""
        found = []
        for entry in list(self._backlog):
            if self._is_urgent(entry[1]):
                try:
                    self._backlog.remove(entry)
                except ValueError:  # A worker has taken it.
                    continue
                found.append(entry[1])
        return found

    def _work_spare(self, items: list[T]) -> None:
        while items:
            for item in items:
                try:
                    self._func(item)
                except BaseException:
                    LOG.exception("an urgent item of a worker thread raised")
            with self._starting:
                items = self._take_urgent()
                if not items:
                    self._spare = None

    begin = staticmethod(run_to_end)
    """Run a coroutine in a context, on this thread, to its end."""

    @staticmethod
    async def run_plain(func: Callable[..., Any], *args: Any) -> Any:
        """Call a function: this thread may block."""
        return call_plain(func, *args)

    @property
    def load(self) -> Load:
        """What the threads are occupied with. Any thread."""
        busy = len(self._workers_by_thread) - len(self._idle)
        return Load(Busy(busy, self._size, len(self._backlog)))

    def reacts(self, _timeout: float) -> bool:
        """Yes: there is no event loop."""
        return True

    def take_backlog(self) -> list[T]:
        """Remove and return the items that no thread has begun."""
        taken: list[T] = []
        while True:
            try:
                taken.append(self._backlog.popleft()[1])
            except IndexError:
                return taken

    def check_thread(self) -> None:
        """Check that this thread may call `close`: any may."""

    def close(self, timeout: float | None) -> int:
        """Let the threads end once they have run all that was submitted. What is submitted later is run too.

        Args:
            timeout: seconds to wait for them; None for as long as it takes.

        Returns:
            how many are still running then, besides the ones that call this.
        """
        self._closed = True
        while self._wake():
            pass
        end = None if timeout is None else Loop.now() + timeout
        own = threading.current_thread()
        with self._starting:
            is_worker = any(worker.thread is own for worker in self._workers)
            if is_worker:
                self._closers.add(own)
            # A worker does not wait for those that wait likewise: each would wait for the other.
            workers = [worker for worker in self._workers if not (is_worker and worker.thread in self._closers)]
        for worker in workers:
            worker.thread.join(None if end is None else max(0.0, end - Loop.now()))
        return sum(worker.thread.is_alive() for worker in workers)

    def _wake_or_start(self) -> bool:
        """Wake the thread that became idle last, or start one. False: all are busy, and there may be no more."""
        if self._wake():
            return True
        if len(self._workers) >= self._size:
            return False
        if Loop.now() >= self._next_start:
            self._start()
        return True

    def _wake(self) -> bool:
        try:
            self._loop.wake(self._idle.pop().wake)  # Taking from the list is atomic: each is woken once.
        except IndexError:
            return False
        return True

    def _start(self) -> None:
        # In `submit` on the main thread, as over a message system in memory, Ctrl-C would leave a thread uncounted.
        holds = self._loop.hold_signals()
        try:
            with self._starting:
                if len(self._workers) < self._size:
                    self._start_worker()
        finally:
            if holds:
                self._loop.release_signals()

    def _start_worker(self) -> None:
        worker = _Worker()
        name = f"{self._name}-{len(self._workers)}"
        worker.thread = threading.Thread(target=self._work, args=(worker,), name=name, daemon=True)
        try:
            worker.thread.start()  # Under the lock: `close` joins what it finds, which has to have been started.
        except RuntimeError as exc:  # The operating system refuses more threads; the backlog is tried again later.
            LOG.error("no thread can be started for %s: %s; it is tried again", self._name, exc)
            self._next_start = Loop.now() + START_AGAIN
            if not self._watching:
                self._watching = True
                self._loop.call_later(START_AGAIN, self._watch)
            return
        self._workers.append(worker)

    def _work(self, worker: _Worker) -> None:
        self._workers_by_thread[threading.get_ident()] = worker
        try:
            self._run_items(worker)
        finally:
            del self._workers_by_thread[threading.get_ident()]
            if self._loop.come_back() or self._loop.is_here:  # Here: other code has raised something in this thread.
                self._loop.give_turn()
            self._take_idle(worker)
            with self._starting:
                self._workers.remove(worker)
            # Checked after that: for an item that is submitted later, another thread is started.
            if self._backlog:
                self._wake_or_start()

    def _run_items(self, worker: _Worker) -> None:
        now = away_since = Loop.now()
        count = 0
        while True:
            try:
                _, item = self._backlog.popleft()
            except IndexError:
                if self._closed:
                    if self._backlog:  # It came between these two looks.
                        continue
                    return
                self._idle.append(worker)
                # An item may have been submitted, or `close` called, just before this thread was idle: then nothing
                # wakes it. If no thread is idle any more, this one has just been woken.
                if self._backlog or self._closed:
                    self._wake()
                self._wait(worker)
                now = away_since = Loop.now()
                continue
            began = now
            count += 1
            waits_before = _count_waits() if count % SAMPLE == 0 else None
            try:
                self._func(item)
            except BaseException:  # A handler's sys.exit() too: it must not cost the server a thread.
                LOG.exception("an item of a worker thread raised")
            now = Loop.now()
            self._average += (now - began - self._average) / 16
            if waits_before is not None:
                # At most so much, since another thread may have had the interpreter just then.
                seconds = 0.0 if _count_waits() == waits_before else min(now - began, SHORT)
                self._waits += (seconds - self._waits) / 16
            del item  # It must not live until the next one comes.
            if now - away_since > AWAY_MAX and self._loop.come_back():
                worker.reads = True
                self._loop.step()
                worker.reads = False
                self._go_on_or_give_turn()
                now = away_since = Loop.now()

    def _wait(self, worker: _Worker) -> None:
        """Wait for work, and drive the loop meanwhile."""
        loop = self._loop
        if not loop.come_back():
            loop.take_turn()
        worker.reads = True
        loop.wait(worker.wake, FOREVER)
        worker.reads = False
        if worker in self._idle:  # Where nobody has woken it. Another thread may do that just now.
            self._take_idle(worker)
        self._go_on_or_give_turn()

    def _go_on_or_give_turn(self) -> None:
        """Run items, and keep the loop's turn only if that does not take long."""
        if self._is_short and not self._closed:
            self._loop.go_away()
        elif self._loop.is_here:
            self._loop.give_turn()
