"""Starts servers for a command that needs some of its own, such as ``msgbus demo``, and stops them at its end.

They are processes, or in this one if the message system is in its memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple

from msgbus.cli.connecting import load_configuration
from msgbus.cli.own_process import SERVER_NAME
from msgbus.cli.progress import progress
from msgbus.drivers.registry import load_driver_class

if TYPE_CHECKING:
    from msgbus.url import TransportURL

DRAIN = 10.0
"""Seconds that a server may take to stop."""
EXPIRES = 60
"""Seconds after which a message system removes queues that nobody uses, if it can."""
TEMPORARY = {
    "queue_expires": str(EXPIRES),
    "server_expires": str(EXPIRES),
    "keep_server_queues": "false",
    "keep_topic_queues": "false",
}
"""Options of drivers by which unused queues are removed. A driver has those of them that its message system can do."""


def temporary_options(url: TransportURL) -> dict[str, str]:
    """The options of `TEMPORARY` that the driver has.

    Raises:
        DriverLoadFailure: the driver is unknown, or cannot be imported.
    """
    _group, options = load_driver_class(url.transport).options()
    known = {option.dest for option in options}
    return {name: value for name, value in TEMPORARY.items() if name in known}


def what_is_left(topic: str, options: dict[str, str]) -> str:
    """What the message system keeps of a topic after the end, where it stores messages.

    Args:
        topic: the command's own.
        options: what `temporary_options` returned.
    """
    if "queue_expires" in options:
        return f"The message system removes the topic's queues when nobody has used them for {EXPIRES} seconds."
    if "keep_topic_queues" in options:
        return ""
    return f"The message system may keep the queues of the topic {topic}: remove them by hand."


class Plan(NamedTuple):
    """How the servers are to be started.

    Attributes:
        url: the transport URL, with its password.
        config_files: paths.
        exchange: None for the default one.
        topic: that they serve.
        log_level: what they log to stderr; None for the default.
        service: makes the endpoint of a server in this process, from the server's name.
        process: the class of the endpoint of a server that is a process, instantiated without arguments. It calls
            `msgbus.cli.own_process.end_with_command`.
    """

    url: str
    config_files: tuple[str, ...]
    exchange: str | None
    topic: str
    log_level: str | None
    service: Callable[[str], object]
    process: type


class Running(NamedTuple):
    """A server that is ready.

    Attributes:
        pid: of its process.
        stop: lets it finish what it runs, returns when it has ended, and says whether that went well. Idempotent.
        exit_code: of its process, if that has ended: None while it runs, and negative after a signal.
    """

    pid: int
    stop: Callable[[], bool]
    exit_code: Callable[[], int | None]


Start = Callable[[Plan, Sequence[str], ExitStack], dict[str, Running]]
"""Starts servers with these names, and returns when all are ready. The exit stack stops them."""


def start_here(plan: Plan, names: Sequence[str], cleanup: ExitStack) -> dict[str, Running]:
    """A `Start` in this process. Each server has a transport of its own, as it would have in its own process.

    Raises:
        MessagingException: a server cannot be started.
    """
    return {name: _start_here(plan, name, cleanup) for name in names}


def _start_here(plan: Plan, name: str, cleanup: ExitStack) -> Running:
    from msgbus.server import get_rpc_server
    from msgbus.target import Target
    from msgbus.transport import get_rpc_transport

    transport = get_rpc_transport(load_configuration(plan.config_files), plan.url)
    cleanup.callback(transport.cleanup)
    target = Target(exchange=plan.exchange, topic=plan.topic, server=name)
    server = get_rpc_server(transport, target, [plan.service(name)])
    server.start()

    def stop() -> bool:
        server.stop()
        return server.wait(DRAIN) == 0

    cleanup.callback(stop)
    return Running(os.getpid(), stop, lambda: None)


def start_processes(plan: Plan, names: Sequence[str], cleanup: ExitStack) -> dict[str, Running]:
    """A `Start` of processes: ``msgbus serve``.

    Raises:
        RuntimeError: a server ended before it was ready; it has printed the reason on stderr.
    """
    started = {name: _start_process(plan, name, cleanup) for name in names}

    def terminate_all() -> None:
        for process in started.values():
            process.terminate()

    cleanup.callback(terminate_all)  # Runs before each is waited for: so they stop at the same time.
    return {
        name: Running(_wait_until_ready(it.process, name), it.stop, it.process.poll) for name, it in started.items()
    }


def _start_process(plan: Plan, name: str, cleanup: ExitStack) -> _Process:
    service = f"{plan.process.__module__}:{plan.process.__qualname__}"
    command = [sys.executable, "-P", "-m", "msgbus.cli", "serve", service, "--topic", plan.topic, "--server", name]
    command += ["--drain", f"{DRAIN:g}", "--json"]
    for path in plan.config_files:
        command += ["--config-file", path]
    if plan.exchange is not None:
        command += ["--exchange", plan.exchange]
    if plan.log_level is not None:
        command += ["--log-level", plan.log_level]
    process = subprocess.Popen(  # noqa: S603  # it is msgbus itself
        command,
        # Not as an argument: the URL may hold a password, and all users can see the arguments of a process.
        env={**os.environ, "MSGBUS_URL": plan.url, SERVER_NAME: name},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,  # Ctrl-C goes to the command alone, which then stops the servers.
    )
    started = _Process(process)
    cleanup.callback(started.stop)
    return started


def _wait_until_ready(process: subprocess.Popen[str], name: str) -> int:
    """Return the process id that the server says it has."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"server {name} did not start: msgbus serve ended with exit code {process.wait()}")
    pid: int = json.loads(line)["pid"]
    return pid


class _Process:
    """The process of a server."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._signalled = False

    def terminate(self) -> None:
        """Ask it to stop. Only the first time: a second signal would end the server at once."""
        if not self._signalled:
            self.process.terminate()
            self._signalled = True

    def stop(self) -> bool:
        """Do what `Running.stop` says."""
        self.terminate()
        try:
            self.process.wait(DRAIN + 5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):  # Not earlier: the end of its stdin is a second signal.
            assert pipe is not None
            pipe.close()
        return self.process.returncode == 0


@contextmanager
def stopping_servers() -> Iterator[ExitStack]:
    """Yield the exit stack for a `Start`; at the end stop the servers, whatever happens."""
    with ExitStack() as cleanup:
        try:
            yield cleanup
        finally:
            with progress() as waiting, waiting("stopping the servers"):
                cleanup.close()
