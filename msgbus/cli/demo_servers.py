"""Starts the servers of ``msgbus demo``: as processes, or in this one if the message system is in its memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from msgbus.cli.connecting import load_configuration
from msgbus.cli.demo_service import SERVER_NAME, Process, Service

DRAIN = 10.0
"""Seconds that a server may take to stop."""


class Plan(NamedTuple):
    """How the servers are to be started.

    Attributes:
        url: the transport URL, with its password.
        config_files: paths.
        exchange: None for the default one.
        topic: that they serve.
        log_level: what they log to stderr; None for the default.
    """

    url: str
    config_files: tuple[str, ...]
    exchange: str | None
    topic: str
    log_level: str | None


class Running(NamedTuple):
    """A server that is ready.

    Attributes:
        pid: of its process.
        stop: lets it finish what it runs, returns when it has ended, and says whether that went well. Idempotent.
    """

    pid: int
    stop: Callable[[], bool]


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
    server = get_rpc_server(transport, target, [Service(name)])
    server.start()

    def stop() -> bool:
        server.stop()
        return server.wait(DRAIN) == 0

    cleanup.callback(stop)
    return Running(os.getpid(), stop)


def start_processes(plan: Plan, names: Sequence[str], cleanup: ExitStack) -> dict[str, Running]:
    """A `Start` of processes: ``msgbus serve``.

    Raises:
        RuntimeError: a server ended before it was ready; it has printed the reason on stderr.
    """
    started = {name: _start_process(plan, name, cleanup) for name in names}
    return {name: Running(_wait_until_ready(process, name), stop) for name, (process, stop) in started.items()}


def _start_process(plan: Plan, name: str, cleanup: ExitStack) -> tuple[subprocess.Popen[str], Callable[[], bool]]:
    service = f"{Process.__module__}:{Process.__qualname__}"
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
        process_group=0,  # Ctrl-C goes to the demo alone, which then stops the servers.
    )
    stop = _stopper(process)
    cleanup.callback(stop)
    return process, stop


def _wait_until_ready(process: subprocess.Popen[str], name: str) -> int:
    """Return the process id that the server says it has."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"server {name} did not start: msgbus serve ended with exit code {process.wait()}")
    pid: int = json.loads(line)["pid"]
    return pid


def _stopper(process: subprocess.Popen[str]) -> Callable[[], bool]:
    """Make the function that stops a process: `Running.stop`."""
    signalled = False

    def stop() -> bool:
        nonlocal signalled
        if not signalled:  # This is called again after a Ctrl-C, and a second signal would end the server at once.
            process.terminate()
            signalled = True
        try:
            process.wait(DRAIN + 5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (
            process.stdin,
            process.stdout,
        ):  # Not earlier: the end of its stdin is a second signal.
            assert pipe is not None
            pipe.close()
        return process.returncode == 0

    return stop
