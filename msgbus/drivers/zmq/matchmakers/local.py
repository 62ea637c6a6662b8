"""The matchmaker ``local``: the processes of one user on one host find each other in a directory.

===================  ==========================================================================================
``<node>.lock``      locked (flock) as long as the node's process lives; the kernel frees it in any case
``<node>.<n>.node``  the node's entry; written to another file and renamed, with a new number each time
``<node>.sock``      its Unix socket
``changes``          eight random bytes, written again after each change of the above
===================  ==========================================================================================

Reading ``changes`` costs a microsecond, so it is read before every batch of messages: no node works with outdated
entries, none is woken by changes that do not concern it, and no library for inotify is needed. Files are named after
node ids, which are made here; topics are inside the files.
"""

from __future__ import annotations

import fcntl
import os
import random
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Mapping

import msgspec

from msgbus.drivers.toolkit import descriptors
from msgbus.drivers.zmq.matchmakers.base import Entry, Matchmaker
from msgbus.exceptions import ConfigurationError, TransportUnavailable
from msgbus.foreign import get_logger

LOG = get_logger(__name__)

NODE_SIZE = 16
"""Characters of a node's id."""
SOCKET_PATH_MAX = 107
"""Bytes of the path of a Unix socket, by Linux."""
CHECKED_AT_ONCE = 5
"""How many other nodes each node checks every few seconds for whether they live."""
ENTRY_MAX = 64 * 1024 * 1024
"""Bytes of the largest entry that is read."""

_ENTRY = re.compile(r"([0-9a-f]{16})\.([0-9]{1,18})\.node")
_OTHER = re.compile(r"([0-9a-f]{16})\.(?:lock|sock|[0-9]{1,18}\.tmp)")
_NODE = re.compile(r"[0-9a-f]{16}")
_CHANGES = "changes"
_decode = msgspec.msgpack.Decoder(Entry).decode


def default_run_dir() -> str:
    """The run directory of this user, if the options name none."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    return os.path.join(base, "msgbus") if base else f"/tmp/msgbus-{os.geteuid()}"  # noqa: S108  # checked below


def check_length(run_dir: str) -> None:
    """Check that sockets can be created in a run directory.

    Raises:
        ConfigurationError: its path is too long for that.
    """
    path = os.path.join(run_dir, "x" * NODE_SIZE + ".sock")
    over = len(os.fsencode(path)) - SOCKET_PATH_MAX
    if over > 0:
        raise ConfigurationError(
            f"run_dir of [msgbus_zmq] is too long by {over} bytes: sockets are created in {run_dir}, and the path of "
            f"a Unix socket has at most {SOCKET_PATH_MAX} bytes; set a shorter one"
        )


def prepare(run_dir: str) -> None:
    """Make the run directory, or check that nobody else can write to the one that exists.

    Raises:
        TransportUnavailable: it cannot be made or used, or others could write to it.
    """
    try:
        parent = os.path.dirname(run_dir)
        if parent:
            os.makedirs(parent, exist_ok=True)
        try:
            os.mkdir(run_dir, 0o700)
        except FileExistsError:
            pass
        found = os.lstat(run_dir)
    except OSError as exc:
        raise _unusable(run_dir, f"it cannot be created: {exc.strerror}") from exc
    if stat.S_ISLNK(found.st_mode):
        raise _unusable(run_dir, "it is a symbolic link")
    if not stat.S_ISDIR(found.st_mode):
        raise _unusable(run_dir, "it is not a directory")
    if found.st_uid != os.geteuid():
        raise _unusable(run_dir, f"it belongs to user {found.st_uid}, but this process runs as user {os.geteuid()}")
    if found.st_mode & 0o022:
        raise _unusable(run_dir, f"others may write to it (mode {stat.S_IMODE(found.st_mode):o}; it should be 700)")
    if not os.access(run_dir, os.R_OK | os.W_OK | os.X_OK):
        raise _unusable(run_dir, f"it cannot be read and written (mode {stat.S_IMODE(found.st_mode):o})")


def _unusable(run_dir: str, why: str) -> TransportUnavailable:
    return TransportUnavailable(
        f"the run directory {run_dir} cannot be used: {why}; check it, or set the option run_dir of [msgbus_zmq]"
    )


class LocalMatchmaker(Matchmaker):
    """See the module's text."""

    def __init__(self, run_dir: str) -> None:
        """Make one; no I/O.

        Raises:
            ConfigurationError: the path of the run directory is too long.
        """
        check_length(run_dir)
        self._dir = run_dir
        self._node = ""
        self._lock = -1
        self._changes = -1
        self._token: bytes | None = None
        self._number = 0
        self._own: Entry | None = None
        self._names: dict[str, str] = {}  # by node, the name of the file that was read
        self._entries: dict[str, Entry] = {}
        self._read_error = ""  # why something in the directory could not be read, the last time

    def _path(self, name: str) -> str:
        return os.path.join(self._dir, name)

    @property
    def node(self) -> str:
        return self._node

    def open(self) -> str:
        prepare(self._dir)
        try:
            self._changes = self._open_changes()
            while not self._node:
                self._node = self._take_node()
            self._remove_dead(os.listdir(self._dir))
        except OSError as exc:
            self.close()
            raise _unusable(self._dir, f"{exc.strerror} ({exc.filename or ''})") from exc
        return self._dir

    def _open_changes(self) -> int:
        return os.open(self._path(_CHANGES), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def _take_node(self) -> str:
        """Make an id, and lock its file. Empty: another node, which cleans up, has removed the file meanwhile."""
        node = secrets.token_hex(NODE_SIZE // 2)
        path = self._path(f"{node}.lock")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        if not _lock(fd, fcntl.LOCK_EX) or not _is_at(fd, path):
            os.close(fd)
            return ""
        self._lock = fd
        return node

    def register(self, entry: Entry, published: Callable[[], None] | None = None) -> None:
        if entry != self._own:
            self._write(entry)
        if published is not None:
            published()

    def _write(self, entry: Entry) -> None:
        try:
            former, self._number = self._number, self._number + 1
            name, aside = f"{self._node}.{self._number}.node", self._path(f"{self._node}.{self._number}.tmp")
            fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                with open(fd, "wb") as file:
                    file.write(msgspec.msgpack.encode(entry))
                os.rename(aside, self._path(name))
            except OSError:
                self._number = former
                _remove([aside])
                raise
            if former:
                _remove([self._path(f"{self._node}.{former}.node")])
            self._own = entry
            # It need not be read again, which takes long if it has thousands of services.
            self._names[self._node], self._entries[self._node] = name, entry
            self._announce_change()
        except OSError as exc:
            raise _unusable(self._dir, f"{exc.strerror} ({exc.filename or ''})") from exc

    def _announce_change(self) -> None:
        os.pwrite(self._changes, secrets.token_bytes(8), 0)

    def changed(self) -> bool:
        try:
            return os.pread(self._changes, 8, 0) != self._token
        except OSError:
            return False

    def entries(self) -> Mapping[str, Entry]:
        if self._changes < 0:
            return {}
        former, self._read_error = self._read_error, ""
        try:
            self._token = os.pread(self._changes, 8, 0)  # first, so that later changes are seen the next time
            self._read(os.listdir(self._dir))
        except OSError as exc:
            self._read_error = f"the run directory {self._dir} cannot be read: {exc.strerror}"
        if self._read_error:
            self._token = None  # It is read again.
            if self._read_error != former:
                LOG.warning("%s", self._read_error)
        return self._entries

    def why_incomplete(self) -> str:
        return self._read_error

    def _read(self, files: Iterable[str]) -> None:
        newest: dict[str, tuple[int, str]] = {}
        for name in files:
            if match := _ENTRY.fullmatch(name):
                newest[match[1]] = max(newest.get(match[1], (0, "")), (int(match[2]), name))
        for node in [node for node in self._names if node not in newest]:
            del self._names[node]
            self._entries.pop(node, None)
        for node, (_, name) in newest.items():
            if self._names.get(node) == name:
                continue
            if node not in self._names and self.is_alive(node) is False:
                self._clean_up(node)
                continue
            entry = self._read_entry(node, name)
            if entry is not None:
                self._names[node] = name
                self._entries[node] = entry

    def _read_entry(self, node: str, name: str) -> Entry | None:
        try:
            with open(self._path(name), "rb") as file:
                # Not more than is there: `read` makes room for all that it is asked for.
                size = os.fstat(file.fileno()).st_size
                entry = _decode(file.read(min(size, ENTRY_MAX)))
            if entry.node != node:
                raise ValueError(f"it belongs to node {entry.node!r}")
        except FileNotFoundError:
            return None  # It has been replaced meanwhile, and `changes` says so.
        except (OSError, ValueError, RecursionError) as exc:
            if descriptors.is_shortage(exc):
                self._read_error = f"{self._path(name)} cannot be read: {exc}; {descriptors.HINT}"
            else:
                LOG.warning("%s cannot be read, and the node is left out: %s", self._path(name), exc)
                if not isinstance(exc, OSError):
                    self._names[node] = name  # Nobody changes a file: it is not read again.
            return None
        return entry

    def is_alive(self, node: str) -> bool | None:
        if node == self._node:
            return True
        if not _NODE.fullmatch(node):
            return False  # It may come from anywhere, and would be part of a path.
        try:
            fd = os.open(self._path(f"{node}.lock"), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        except OSError:
            return None
        try:
            return not _lock(fd, fcntl.LOCK_SH)
        finally:
            os.close(fd)

    def knows(self, node: str) -> bool:
        """Whether the node is, or was a moment ago, in this directory. Any thread."""
        is_id = _NODE.fullmatch(node) is not None
        return node in self._names or (is_id and os.path.lexists(self._path(f"{node}.lock")))

    def forget(self, node: str) -> None:
        if self._changes >= 0 and _NODE.fullmatch(node):
            self._clean_up(node)

    def maintain(self) -> None:
        try:
            ours = ((self._changes, _CHANGES), (self._lock, f"{self._node}.lock"))
            if not all(_is_at(fd, self._path(name)) for fd, name in ours):
                self._restore()
            elif self._own is not None and not os.path.lexists(self._path(f"{self._node}.{self._number}.node")):
                self._write(self._own)  # There was no room for it when the others were written again.
            for name in (_CHANGES, *(f"{self._node}.{end}" for end in ("lock", "sock", f"{self._number}.node"))):
                if os.path.lexists(path := self._path(name)):
                    os.utime(path, follow_symlinks=False)  # Programs that clean up remove old files.
            # If each node checks a few, a dead one is found as soon as if each checked all.
            known = list(self._names)
            for node in random.sample(known, min(len(known), CHECKED_AT_ONCE)):
                if self.is_alive(node) is False:
                    self._clean_up(node)
        except (OSError, TransportUnavailable) as exc:
            LOG.warning("the run directory %s cannot be maintained: %s", self._dir, exc)

    def _restore(self) -> None:
        """Write our files again, which were removed, perhaps by a program that cleans up."""
        LOG.warning("files of msgbus in %s were removed, and are written again; check what cleans up there", self._dir)
        prepare(self._dir)
        # One after the other: where that fails it is tried again, every few seconds.
        changes, self._changes = self._changes, self._open_changes()
        os.close(changes)
        path = self._path(f"{self._node}.lock")
        lock, self._lock = self._lock, os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        _lock(self._lock, fcntl.LOCK_EX)
        os.close(lock)
        if self._own is not None:
            self._write(self._own)

    def _remove_dead(self, files: Iterable[str]) -> None:
        nodes = {match[1] for name in files if (match := _ENTRY.fullmatch(name) or _OTHER.fullmatch(name))}
        for node in nodes:
            if self.is_alive(node) is False:
                self._clean_up(node)

    def _clean_up(self, node: str) -> None:
        """Remove what a dead process has left behind, unless another node is doing that."""
        lock = self._path(f"{node}.lock")
        try:
            fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError:
            return
        try:
            if _lock(fd, fcntl.LOCK_EX) and _is_at(fd, lock):
                _remove([*self._files(node), lock])
                self._announce_change()
        except OSError as exc:
            LOG.debug("the files of dead node %s in %s could not be removed: %s", node, self._dir, exc)
        finally:
            os.close(fd)

    def _files(self, node: str) -> list[str]:
        """All files of a node but the lock, which has to be removed last."""
        return [
            self._path(name)
            for name in os.listdir(self._dir)
            if name.startswith(f"{node}.") and not name.endswith(".lock")
        ]

    def close(self) -> None:
        if self._node:
            try:
                _remove([*self._files(self._node), self._path(f"{self._node}.lock")])
                self._announce_change()
            except OSError as exc:
                LOG.debug("the files of node %s could not be removed: %s", self._node, exc)
        self.abandon()
        # If it is opened again it gets another id, since the lock of this one is free.
        self._node, self._number, self._token, self._own = "", 0, None, None
        self._names.clear()
        self._entries.clear()

    def abandon(self) -> None:
        # Closing does not free the lock while another process has the file open: a child leaves it to its parent.
        for fd in (self._lock, self._changes):
            if fd >= 0:
                os.close(fd)
        self._lock = self._changes = -1


def _lock(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(fd: int, path: str) -> bool:
    """Whether an open file is still the one at that path."""
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(fd))


def _remove(paths: Iterable[str]) -> None:
    for path in paths:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
