"""A RabbitMQ server of the tests' own, on loopback, with ports and data of its own."""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
import shutil
import signal
import socket
import subprocess
from typing import Final

from tests.functional.brokers.console import WATERMARK, Console
from tests.functional.brokers.processes import (
    BrokerFailed,
    BrokerMissing,
    ProcessTree,
    free_ports,
    is_stopped,
    poll,
    send_signal,
)

__all__ = ["BrokerFailed", "BrokerMissing", "RabbitMQ"]

HERE: Final = pathlib.Path(__file__).parent
# Where each version is: in the machine's own packages, or in the tree of a newer Debian that `install` makes. That
# Debian moves on, so whatever 4.x it has stands for the current RabbitMQ; `release` says which it is.
_SBIN: Final = {
    "3.10": "usr/lib/rabbitmq/lib/rabbitmq_server-3.10.*/sbin",
    "4.3": "usr/lib/rabbitmq/lib/rabbitmq_server-4.*/sbin",
}
_START_SECONDS: Final = 120.0  # a cluster's node waits for others
_START_TRIES: Final = 3
_STOP_SECONDS: Final = 30.0


class RabbitMQ(Console):
    """One RabbitMQ node; nothing runs until ``start()``.

    ``version`` is "3.10" or "4.3". ``base`` is a folder that belongs to this node alone; it is made if need be.
    ``tls`` is a folder with ca.pem, server.pem and server.key: with it the node also listens for TLS. ``config`` are
    more lines of rabbitmq.conf, key -> value, and wins over what is set here. Nodes of a cluster have different names
    ``node``, the same ``cookie``, and the port of an epmd that runs for all of them; ``erl`` are more words for Erlang.
    Raises ``BrokerMissing`` if this machine does not have that version. Ports stay the same over restarts, data until
    ``close()``.
    """

    def __init__(
        self,
        version: str,
        base: pathlib.Path,
        *,
        tls: pathlib.Path | None = None,
        config: dict[str, str] | None = None,
        node: str = "rabbit",
        cookie: str | None = None,
        epmd_port: int | None = None,
        erl: str = "",
    ) -> None:
        self.version = version
        self.base = base
        self.node_name = f"{node}@localhost"
        self._root, self._sbin = find(version)
        # What the node calls its base folder: in the tree it is shown as /mnt.
        self._inside = base if self._root is None else pathlib.Path("/mnt")
        self.port, self.tls_port, self._dist, own_epmd, console_port = free_ports(5)
        self._epmd = own_epmd if epmd_port is None else epmd_port
        self._erl = erl
        self._secret = cookie or secrets.token_hex(16)
        super().__init__(console_port, self._secret)
        self._tls = tls is not None
        self._tree: ProcessTree | None = None
        self._write_files(tls, config or {})

    def _write_files(self, tls: pathlib.Path | None, extra: dict[str, str]) -> None:
        for name in ("data", "log", "tls", "home"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        lines = {
            "listeners.tcp.1": f"127.0.0.1:{self.port}",
            "vm_memory_high_watermark.relative": WATERMARK,
            "disk_free_limit.absolute": "50MB",
            "log.file.level": "info",
        }
        if tls is not None:
            for name in ("ca.pem", "server.pem", "server.key"):
                shutil.copy(tls / name, self.base / "tls" / name)
            lines |= {
                "listeners.ssl.1": f"127.0.0.1:{self.tls_port}",
                "ssl_options.cacertfile": f"{self._inside}/tls/ca.pem",
                "ssl_options.certfile": f"{self._inside}/tls/server.pem",
                "ssl_options.keyfile": f"{self._inside}/tls/server.key",
                "ssl_options.verify": "verify_none",
                "ssl_options.fail_if_no_peer_cert": "false",
            }
        text = "".join(f"{key} = {value}\n" for key, value in (lines | extra).items())
        (self.base / "rabbitmq.conf").write_text(text)
        # A small machine may have no /etc/hosts, and a node does not start without its host name.
        (self.base / "inetrc").write_text('{host, {127,0,0,1}, ["localhost"]}.\n{lookup, [file, native]}.\n')
        (self.base / "enabled_plugins").write_text("[].\n")
        (self.base / "console.erl").write_text(self.console_script())
        cookie = self.base / "home" / ".erlang.cookie"
        cookie.unlink(missing_ok=True)
        cookie.write_text(self._secret)
        cookie.chmod(0o400)

    def _environment(self) -> dict[str, str]:
        inside = self._inside
        # The last of these keeps the counts of a quorum queue half a second old at most; the default is five seconds.
        erl = (
            f'+S 2:2 +sbwt none -kernel inet_dist_use_interface {{127,0,0,1}} -eval file:eval("{inside}/console.erl") '
            f"-rabbit quorum_tick_interval 500 {self._erl}"
        )
        return {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "HOME": f"{inside}/home",
            "ERL_CRASH_DUMP_SECONDS": "0",  # no dump
            "ERL_INETRC": f"{inside}/inetrc",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._epmd),
            "RABBITMQ_NODENAME": self.node_name,
            "RABBITMQ_DIST_PORT": str(self._dist),
            "RABBITMQ_CONF_ENV_FILE": f"{inside}/no-such-file",
            "RABBITMQ_CONFIG_FILE": f"{inside}/rabbitmq.conf",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{inside}/advanced.config",
            "RABBITMQ_GENERATED_CONFIG_DIR": f"{inside}/data/config",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{inside}/enabled_plugins",
            "RABBITMQ_MNESIA_BASE": f"{inside}/data",
            "RABBITMQ_LOG_BASE": f"{inside}/log",
            "RABBITMQ_PID_FILE": f"{inside}/data/pid",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": erl,
        }

    @property
    def url(self) -> str:
        """The transport URL of the node, as guest."""
        return f"rabbit://guest:guest@127.0.0.1:{self.port}/"

    @property
    def tls_url(self) -> str:
        """As ``url``, for the port that speaks TLS; raises ``ValueError`` if the node has none."""
        if not self._tls:
            raise ValueError("this node was made without tls=")
        return f"rabbit://guest:guest@127.0.0.1:{self.tls_port}/"

    @property
    def release(self) -> str:
        """The exact version, such as 3.10.8."""
        return self._sbin.parent.name.partition("-")[2]

    def alive(self) -> bool:
        """Whether the node's process runs (it may be paused)."""
        return self._tree is not None and self._tree.alive()

    def start(self) -> None:
        """Start the node, and return when it serves AMQP; raise ``BrokerFailed`` if it does not within 120 s."""
        if self.alive():
            raise RuntimeError("already started")
        for tries_left in range(_START_TRIES - 1, -1, -1):
            try:
                self._start()
                return
            except (TimeoutError, BrokerFailed) as error:
                self.kill()
                tail = self.log_tail()
                # Erlang waits for its name server for a few seconds only, which a busy machine may need.
                if not tries_left or "nodistribution" not in tail:
                    raise BrokerFailed(f"RabbitMQ {self.version}: {error}\n{tail}") from error

    def _start(self) -> None:
        data = self.base if self._root else None
        server = str(self._sbin / "rabbitmq-server")
        self._tree = ProcessTree([server], self._environment(), self.base / "log" / "output", self._root, data)
        poll(self._ready, _START_SECONDS, "the start of the broker")

    def _ready(self) -> bool:
        if not self.alive():
            raise BrokerFailed("it ended while starting")
        return _greets(self.port) and self._is_running()

    def _is_running(self) -> bool:
        try:
            return self.eval("rabbit:is_running().", seconds=5) is True
        except OSError:
            return False

    def stop(self) -> None:
        """Shut the node down cleanly, and return when it has ended; ``BrokerFailed`` if not within 30 s."""
        if self._tree is None or not self._tree.alive():
            return
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGTERM)
        if not self._tree.wait(_STOP_SECONDS):
            self.kill()
            raise BrokerFailed(f"RabbitMQ {self.version} did not stop in {_STOP_SECONDS} s\n{self.log_tail()}")

    def kill(self) -> None:
        """SIGKILL the node with all its helpers, and return when they have ended."""
        if self._tree is not None:
            self._tree.kill()

    def sync(self) -> None:
        """Have the node write to disk what it keeps in memory for a while yet.

        RabbitMQ 3.10 writes durable queues, exchanges and bindings up to two seconds after it has said that they are
        declared. A test that declares, kills and expects them back calls this before ``kill()``.
        """
        if self.version == "3.10":
            self.eval("mnesia:sync_log().")

    def restart(self) -> None:
        """``stop()``, then ``start()``."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze the node (SIGSTOP): connections stay open, and nothing answers until ``resume()``."""
        self._signal(signal.SIGSTOP)

    def paused(self) -> bool:
        """Whether the node is frozen."""
        return is_stopped(self._beam())

    def resume(self) -> None:
        """Let a paused node go on."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """Kill the node and remove its data."""
        self.kill()
        shutil.rmtree(self.base, ignore_errors=True)

    def _signal(self, number: signal.Signals) -> None:
        send_signal(self._beam(), number)

    def _beam(self) -> int:
        found = self._tree.pids("beam.smp") if self._tree is not None else []
        if not found:
            raise BrokerFailed(f"RabbitMQ {self.version} does not run\n{self.log_tail()}")
        return found[0]

    def ctl(self, *args: str, seconds: float = 80.0) -> str:
        """What ``rabbitmqctl`` prints, from the node's own command; raise ``BrokerFailed`` if it fails or is too slow.

        It takes seconds: ``eval()`` and what is made of it take milliseconds.
        """
        # In the mounts and root folder of the node, where its command and its cookie are. GNU timeout, as it kills
        # the whole group; subprocess would wait for the output of what it left.
        command = f"timeout -s KILL {seconds} nsenter -t {self._beam()} --mount --root --wd".split()
        if os.geteuid() != 0:
            command += ["--user", "--preserve-credentials"]
        env = self._environment() | {"RABBITMQ_CTL_ERL_ARGS": "+S 1:1"}
        argv = [*command, str(self._sbin / "rabbitmqctl"), "--quiet", *args]
        result = subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise BrokerFailed(f"rabbitmqctl {' '.join(args)}: {result.returncode}: {result.stdout}{result.stderr}")
        return result.stdout

    def log_tail(self) -> str:
        """The last lines of its log files, and of what it has printed."""
        found: list[str] = []
        for path in [*(self.base / "log").glob("*.log"), self.base / "log" / "output"]:
            with contextlib.suppress(OSError):
                found += [f"--- {path}", *path.read_text(errors="replace").splitlines()[-100:]]
        return "\n".join(found)


def find(version: str) -> tuple[pathlib.Path | None, pathlib.Path]:
    """The root folder of the tree (None: the machine's own) and the folder of the server's commands in it."""
    root = None
    if version == "4.3":
        root = pathlib.Path(os.environ.get("MSGBUS_BROKERS_DIR", "/var/lib/msgbus-brokers")) / "forky"
    top = root or pathlib.Path("/")
    found = sorted(top.glob(_SBIN[version]))
    # The stamp is written last: without it the install was interrupted.
    if not found or (root is not None and not (root / ".msgbus-complete").exists()):
        raise BrokerMissing(
            f"RabbitMQ {version} is not installed in {top}: run {HERE.relative_to(HERE.parents[2])}/install "
            f"rabbitmq-{version}"
        )
    return root, pathlib.Path("/") / found[-1].relative_to(top)


def _greets(port: int) -> bool:
    """Whether an AMQP 0-9-1 server answers the protocol header with its Connection.Start."""
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            connection.settimeout(5)
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            with connection.makefile("rb") as stream:
                return stream.read(11)[7:] == b"\x00\x0a\x00\x0a"
    except OSError:
        return False
