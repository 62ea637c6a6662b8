"""Run: one scenario while it runs. It starts processes, breaks things, and says in the journal what it broke."""

from __future__ import annotations

import contextlib
import pathlib
import time
import uuid
from collections.abc import Callable, Iterator
from types import TracebackType

from tests.faults.journal import SYSTEM, Event, Reader, Writer
from tests.faults.processes import Process, Thread, Worker
from tests.faults.proofs import Record
from tests.faults.systems import Node, System
from tests.faults.workload import Load, Spec

START = 60.0
"""Seconds for a process to begin."""
DRAIN = 90.0
"""Seconds for a process to end in good order, and for casts to be run that were confirmed."""
GRACE = 30.0
"""Seconds after the last deadline until a client that is still at it counts as hung."""
POLL = 0.1
"""Seconds between two reads of the journal: it is long, and reading it all the time slows down what it records."""
LOG_LINES = 40
"""Of each process, where a scenario has failed."""
Progress = Callable[[str], None]


class Run:
    """A scenario while it runs; a context manager, which ends all processes in any case.

    Args:
        system: what the processes are connected to.
        folder: for the journal and the logs of the processes.
        progress: called with each line of progress.
        bounded: whether it is asserted how soon calls go on: on a machine that has nothing else to do.
    """

    def __init__(
        self,
        system: System,
        folder: pathlib.Path,
        progress: Progress = lambda line: None,
        bounded: bool = False,
    ) -> None:
        self.system = system
        self.folder = folder
        self.progress = progress
        self.bounded = bounded
        self.topic = f"faults-{uuid.uuid4().hex[:8]}"
        self.servers: dict[str, Worker] = {}
        self.clients: dict[str, Worker] = {}
        self._all: list[Worker] = []
        self._longest: dict[str, float] = {}
        self._reader = Reader(folder)
        self._writer = Writer(str(folder), "faults")

    def __enter__(self) -> Run:
        return self

    def __exit__(self, cls: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        for process in self._all:
            process.close()
        self._writer.close()
        print(self.logs())

    # The processes

    def serve(self, *names: str, wait: bool = True, **options: str | int | float | bool) -> None:
        """Start servers; options are the core's. One may have the name of another that has ended."""
        for name in names:
            self.servers[name] = self._start("server", name, (), options)
        for name in names if wait else ():
            process = self.servers[name]
            self.until(lambda p=process: self.count("ready", pid=p.pid), f"{name} is ready", START, process)  # type: ignore[misc]

    def send(self, name: str, *loads: Load, **options: str | int | float | bool) -> Worker:
        """Start a client that sends these loads."""
        process = self.clients[name] = self._start("client", name, loads, options)
        self._longest[name] = max(
            load.deadline * (load.items + 1 if load.verb == "multicall" else 1)
            + max(load.count / load.rate, load.count / load.concurrency * load.seconds)
            for load in loads
        )
        return process

    def _start(
        self, kind: str, name: str, loads: tuple[Load, ...], options: dict[str, str | int | float | bool]
    ) -> Worker:
        line = self.system.connect(len(self._all))
        spec = Spec(
            name=name, url=line.url, topic=self.topic, folder=str(self.folder), options=options, loads=tuple(loads)
        )
        process = (Process if "processes" in self.system.can else Thread)(kind, spec, line)
        self._all.append(process)
        return process

    def replace_dead(self) -> bool:
        """Start servers in the places of those that have ended; return whether there were any."""
        dead = [process for process in self.servers.values() if not process.alive]
        for process in dead:
            self.note_death(process)
            self.serve(process.name, wait=False)
        return bool(dead)

    # What has happened

    def events(self) -> list[Event]:
        """The journal as it is now."""
        return self._reader.events()

    def count(self, what: str, pid: int | None = None, prefix: str = "") -> int:
        """How many events of a kind there are, of one process, of ids that begin so."""
        return sum(
            event.what == what and pid in (None, event.pid) and event.id.startswith(prefix) for event in self.events()
        )

    def until(self, condition: Callable[[], object], what: str, seconds: float, process: Worker | None = None) -> None:
        """Wait for a condition, and look after the process that it depends on.

        Raises:
            AssertionError: it did not come within `seconds`, or the process has ended; the text names `what`.
        """
        end = time.monotonic() + seconds
        shown = 0.0
        while not condition():
            now = time.monotonic()
            if process is not None and not process.alive:
                raise AssertionError(f"{process.name} has ended, and so this will not come: {what}")
            if now > end:
                raise AssertionError(f"not within {seconds:g} s: {what}; {self._errors()}")
            if now > shown + 1:
                shown = now
                self.progress(f"waiting: {what}; {len(self.events()):,} lines in the journal")
            time.sleep(POLL)

    def _errors(self) -> str:
        """The errors that clients have got so far, and the text of the last one."""
        found = [event for event in self.events() if event.what == "raised"]
        return f"{len(found)} errors so far" + (f", the last: {found[-1].error}: {found[-1].text}" if found else "")

    def wait_for(self, what: str, count: int = 1, who: str | None = None, prefix: str = "") -> None:
        """Wait until so many events of a kind have happened, at the server of this name."""
        pid = None if who is None else self.servers[who].pid
        self.until(lambda: self.count(what, pid, prefix) >= count, f"{count} x {what} {prefix} {who or ''}", START)

    # What is broken

    def note_fault(self, subject: str, what: str) -> None:
        """Note that something is broken from now on."""
        self.progress(f"{subject} {what}")
        self._writer.add(Event("fault", subject=subject, text=what))

    def note_death(self, process: Worker) -> None:
        """Note that a process has ended by itself, right after the last that it said."""
        last = max(event.at for event in self.events() if event.pid == process.pid)
        self.progress(f"{process.name} has ended by itself")
        self._writer.add(Event("fault", subject=process.name, text="ends by itself", at=last + 1e-6))

    def note_over(self, subject: str, what: str) -> None:
        """Note that what was broken is whole again; of servers as a whole, the subject is `SYSTEM`."""
        self.progress(f"{subject} {what}")
        self._writer.add(Event("over", subject=subject, text=what))

    def kill(self, process: Worker) -> None:
        """SIGKILL a process."""
        self.note_fault(process.name, "is killed")
        process.kill()

    def stop(self, process: Worker) -> None:
        """Have a process end in good order. Returns at once."""
        self.note_fault(process.name, "is stopped in good order")
        process.stop()

    @contextlib.contextmanager
    def paused(self, it: Worker | Node) -> Iterator[None]:
        """Freeze a process or a broker during the block."""
        name = it.name if isinstance(it, Worker) else SYSTEM
        self.note_fault(name, "is frozen")
        it.pause()
        try:
            yield
        finally:
            it.resume()
            self.note_over(name, "goes on")

    @contextlib.contextmanager
    def cut_off(self, process: Worker) -> Iterator[None]:
        """Cut a process off from the message system during the block."""
        self.note_fault(process.name, "is cut off")
        process.cut()
        try:
            yield
        finally:
            process.heal()
            self.note_over(process.name, "is let through again")

    @contextlib.contextmanager
    def unplugged(self, process: Worker) -> Iterator[None]:
        """Cut a process off without a word during the block: its connections stay open."""
        self.note_fault(process.name, "is cut off without a word")
        process.stall()
        try:
            yield
        finally:
            process.heal()
            self.note_over(process.name, "is let through again")

    def kill_node(self, node: Node) -> None:
        """SIGKILL a broker."""
        self.note_fault(SYSTEM, "is killed")
        node.kill()
        self._writer.add(Event("gone"))
        self._note_wiped()

    def stop_node(self, node: Node) -> None:
        """Stop a broker in good order."""
        self.note_fault(SYSTEM, "is stopped in good order")
        node.stop()
        self._note_wiped()

    def _note_wiped(self) -> None:
        """Note that what was stored is gone, now that nothing more can be confirmed."""
        if "volatile" in self.system.can:
            self._writer.add(Event("wiped"))

    def start_node(self, node: Node) -> None:
        """Start a broker again."""
        self.progress(f"{SYSTEM} is being started")
        node.start()
        self.note_over(SYSTEM, "is there again")

    @contextlib.contextmanager
    def partitioned(self, node: Node) -> Iterator[None]:
        """Cut a node of a cluster off from the others during the block."""
        self.note_fault(SYSTEM, "is partitioned")
        self.system.partition(node)
        try:
            yield
        finally:
            self.system.heal()
            self.note_over(SYSTEM, "is whole again")

    def delete_exchange(self) -> None:
        """Delete the exchange of all topics."""
        self.note_fault(SYSTEM, "loses its exchange")
        self.system.delete_exchange()

    # The end

    def finish(self) -> list[Event]:
        """Wait until all clients are done and all confirmed casts have run; end everything; return the journal."""
        for name, process in self.clients.items():
            if process.alive and not self.count("stopped", process.pid):
                seconds = self._longest[name] + GRACE
                with contextlib.suppress(AssertionError):  # What is missing then is found by the proofs.
                    self.until(lambda p=process: self.count("done", p.pid) or not p.alive, f"{name} is done", seconds)  # type: ignore[misc]
        with contextlib.suppress(AssertionError):
            self.until(lambda: not self._missing(), "all confirmed casts have run", DRAIN)
        self.progress("ending clients and servers")
        for process in reversed(self._all):
            process.stop()
        for process in self._all:
            if not process.wait(DRAIN):
                raise AssertionError(f"{process.name} does not end within {DRAIN:g} s of the signal")
        return self.events()

    def _missing(self) -> set[str]:
        return {message.id for message in Record(self.events()).unfinished()}

    def logs(self) -> str:
        """The ends of the logs of all processes."""
        found = []
        for path in sorted({process.log for process in self._all if process.log.exists()}):
            lines = path.read_text(errors="replace").splitlines()
            found += [f"--- {path}, the last {min(LOG_LINES, len(lines))} of {len(lines)} lines", *lines[-LOG_LINES:]]
        return "\n".join(found)
