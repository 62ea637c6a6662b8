"""Processes that the tests start, and that never outlive them.

A ``ProcessTree`` runs a command in a PID namespace of its own. The first process of that namespace is a shell that
waits for the end of a pipe whose other end only the test process holds. However the test process ends, by ``kill -9``
too, the pipe ends, that shell ends with it, and the kernel then kills whatever is left in the namespace: daemons that
left their session or process group included. (A parent-death signal would not do: it is sent when the *thread* that
started the process ends, and is not inherited by what the process itself starts.)
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import pathlib
import random
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence


class BrokerMissing(Exception):
    """The broker cannot be had on this machine; the message says why, and what installs it."""


class BrokerFailed(Exception):
    """The broker did not carry out a command in time; the message has the end of its log."""


# $1 is the root folder of the command ("" for the machine's own), $2 the folder to show as /mnt in it ("" for none).
# A /proc of the namespace is needed, as brokers look themselves up in it by a process id that only holds there.
_FIRST_PROCESS = """
root=$1 data=$2; shift 2
mount -t proc proc "$root/proc" || exit
[ -z "$data" ] || mount --bind "$data" "$root/mnt" || exit
exec 3<&0 </dev/null
chroot "$root/" "$@" 3<&- &
main=$!
( read -r _ <&3; kill -KILL $main ) &
wait $main
"""


def poll(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Return once ``condition()`` is true; raise ``TimeoutError`` naming ``what`` after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s: {what}")
        time.sleep(0.02)


def free_ports(count: int) -> list[int]:
    """``count`` different free TCP ports on 127.0.0.1, none of which the kernel hands out by itself.

    The kernel's own range (32768 and up) is left alone: a client that calls again and again on a port of that range
    while the broker is down will sooner or later get the same port for its own end, and then talks to itself.

    No other process that runs tests on this machine gets one of them before this one ends: a port is listened on some
    time after it is chosen, and a broker that was stopped comes back at the same.
    """
    found: list[int] = []
    with _reserved_ports() as reserved:
        while len(found) < count:
            port = random.SystemRandom().randrange(15000, 32000)
            with socket.socket() as probe:
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
            if port not in reserved:
                reserved.add(port)
                found.append(port)
        with (_RESERVED / str(os.getpid())).open("a") as mine:
            mine.writelines(f"{port}\n" for port in found)
    return found


_RESERVED = pathlib.Path(tempfile.gettempdir()) / f"msgbus-test-ports-{os.getuid()}"
"""A file for each process that runs tests, with the ports that it has chosen."""


@contextlib.contextmanager
def _reserved_ports() -> Iterator[set[int]]:
    """The ports that running processes have chosen. None of them chooses meanwhile."""
    _RESERVED.mkdir(mode=0o700, exist_ok=True)
    with (_RESERVED / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        reserved: set[int] = set()
        for file in _RESERVED.glob("[0-9]*"):
            if pathlib.Path(f"/proc/{file.name}").exists():
                reserved.update(map(int, file.read_text().split()))
            else:
                file.unlink()
        yield reserved


@functools.cache
def _namespace_command() -> tuple[str, ...]:
    """The ``unshare`` command that may be used here; raises ``BrokerMissing`` if none may."""
    usual = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
    # As another user than root the namespaces need one of users around them. In a chroot the root folder may be no
    # mount point, and its propagation then cannot be changed.
    choices = [usual, (*usual, "--propagation", "unchanged")] if os.geteuid() == 0 else [(*usual, "--user", "-r")]
    reason = ""
    for choice in choices:
        try:
            result = subprocess.run([*choice, "true"], capture_output=True, text=True, timeout=30, check=False)
        except OSError as error:
            raise BrokerMissing(f"unshare, of Debian's util-linux, cannot be run: {error}") from error
        if result.returncode == 0:
            return choice
        reason = result.stderr.strip()
    raise BrokerMissing(f"this machine does not let {choices[0]} run ({reason}): run the tests as root")


class ProcessTree:
    """A running command with all that it starts.

    ``root`` is the folder that the command sees as /, and ``data``, then, what it sees as /mnt. Its output is
    appended to the file ``log``. Raises ``BrokerMissing`` where this machine does not allow it.
    """

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        log: pathlib.Path,
        root: pathlib.Path | None = None,
        data: pathlib.Path | None = None,
    ) -> None:
        first = ["/bin/sh", "-c", _FIRST_PROCESS, "sh", str(root or ""), str(data or "")]
        with open(log, "ab") as output:
            self._process = subprocess.Popen(
                [*_namespace_command(), *first, *argv],
                env=dict(env),
                stdin=subprocess.PIPE,  # its end shows the first process that the tests have ended
                stdout=output,
                stderr=output,
                start_new_session=True,  # a Ctrl-C is for the tests only
            )

    def alive(self) -> bool:
        """Whether the command still runs."""
        return self._process.poll() is None

    def pids(self, name: str) -> list[int]:
        """The processes of the tree whose program is called ``name``."""
        table = _process_table()
        return [pid for pid, (program, _) in table.items() if program == name and self._is_ours(pid, table)]

    def _is_ours(self, pid: int, table: Mapping[int, tuple[str, int]]) -> bool:
        while pid in table:
            pid = table[pid][1]
            if pid == self._process.pid:
                return True
        return False

    def wait(self, seconds: float) -> bool:
        """Wait until nothing of the tree runs; false if something still does after ``seconds``."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        self._close_pipe()
        return True

    def kill(self) -> None:
        """SIGKILL all processes, and return when they have ended."""
        if self.alive():
            # The first process of the namespace is the only child of unshare. The kernel lets it end only after all
            # the others have, and unshare ends after it: when unshare has ended, so have all.
            first = [pid for pid, (_, parent) in _process_table().items() if parent == self._process.pid]
            if first:
                send_signal(first[0], signal.SIGKILL)
            else:
                self._process.kill()  # nothing is started yet; --kill-child passes it on if it just was
        self._process.wait(30)
        self._close_pipe()

    def _close_pipe(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()


def send_signal(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process, which may have ended already. After SIGSTOP it has stopped on return."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
        if number == signal.SIGSTOP:
            poll(lambda: is_stopped(pid), 10.0, f"process {pid} to stop")


def is_stopped(pid: int) -> bool:
    """Whether a process was stopped by a signal, or has ended."""
    return not _running_threads(pid)


def _running_threads(pid: int) -> list[str]:
    """The threads of a process that are neither stopped nor ended."""
    found = []
    for task in pathlib.Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            state = task.read_text().rpartition(")")[2].split()[0]
            if state not in "TtZX":
                found.append(task.parent.name)
    return found


def _process_table() -> dict[int, tuple[str, int]]:
    """Every process of the machine: id -> the name of its program, and its parent."""
    table: dict[int, tuple[str, int]] = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it ended meanwhile
                program, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
                table[int(entry.name)] = (program, int(rest.split()[1]))
    return table
