"""Ironic, unchanged: its API and its conductor, two processes, without Keystone, with SQLite and its fake hardware."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from benchmarks import environments
from tests.functional.brokers.processes import free_ports, poll
from tests.support import ROOT

VERSION = "39.0.0"
_START_SECONDS = 90.0
_STEP_SECONDS = 60.0
_STOP_SECONDS = 60.0
_FAKE = (
    "bios",
    "boot",
    "console",
    "deploy",
    "firmware",
    "inspect",
    "management",
    "power",
    "raid",
    "rescue",
    "storage",
    "vendor",
)
"""Interfaces of hardware that have an implementation called fake."""
_CONFIGURATION = """\
[DEFAULT]
auth_strategy = noauth
host = judged
transport_url = {url}
enabled_hardware_types = fake-hardware
{interfaces}
enabled_network_interfaces = noop
default_network_interface = noop

[api]
host_ip = 127.0.0.1
port = {port}
api_workers = 1

[conductor]
automated_clean = false

[database]
connection = sqlite:///{folder}/ironic.sqlite

[oslo_concurrency]
lock_path = {folder}
"""


def environment() -> environments.Environment:
    """Where Ironic is installed, with the checkout of msgbus: made once, and kept outside of the checkout.

    Raises:
        environments.PeerMissing: it cannot be installed.
    """
    # Setuptools builds what is editable without asking for anything from elsewhere; so it is there beforehand.
    found = environments.get("ironic", [f"ironic=={VERSION}", "setuptools>=77.0.3"], "ironic")
    command = [found.python, "-m", "pip", "install", "--quiet", "--no-build-isolation", "-e", f"{ROOT}[qpid]"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    if result.returncode != 0:
        raise environments.PeerMissing(f"ironic: {environments.reason(result.stderr or result.stdout)}")
    return found


class Answer:
    """What the API answered: `status`, and `body`, of JSON."""

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        self.body: Any = json.loads(text) if text else None

    def __repr__(self) -> str:
        return f"{self.status}: {self.body}"


class Ironic:
    """An API and a conductor that serve within this context, each with a ``transport_url`` of its own.

    Args:
        python: of the environment where it is installed.
        folder: which belongs to it alone.
        api, conductor: their URLs.
    """

    def __init__(self, python: str, folder: pathlib.Path, api: str, conductor: str) -> None:
        self._bin = pathlib.Path(python).parent
        self._folder = folder
        self._port = free_ports(1)[0]
        self._urls = {"api": api, "conductor": conductor}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        for name, url in self._urls.items():
            interfaces = "\n".join(
                f"enabled_{kind}_interfaces = fake\ndefault_{kind}_interface = fake" for kind in _FAKE
            )
            text = _CONFIGURATION.format(url=url, port=self._port, folder=self._folder, interfaces=interfaces)
            self._configuration(name).write_text(text)
        try:
            command = [str(self._bin / "ironic-dbsync"), "--config-file", str(self._configuration("api"))]
            subprocess.run(
                [*command, "create_schema"], check=True, capture_output=True, env=_environment(), timeout=300
            )
            self._start("conductor")
            self._start("api")
            poll(self._serves, _START_SECONDS, "Ironic's API to know its conductor")
        except BaseException as exc:
            self._kill()
            exc.add_note(self.logs())
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note(self.logs())
        self._kill()

    def stop(self) -> None:
        """Ask both to end, and return when they have; raise ``TimeoutError`` if they do not within 60 s."""
        for process in self._processes.values():
            process.terminate()
        for name, process in self._processes.items():
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                raise TimeoutError(f"ironic-{name} did not end within {_STOP_SECONDS:g} s") from None

    def ask(self, method: str, path: str, body: Any = None) -> Answer:
        """Ask the API for something, whatever it answers."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}/v1/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "X-OpenStack-Ironic-API-Version": "latest"},
        )
        try:
            with urllib.request.urlopen(request, timeout=_STEP_SECONDS) as response:  # noqa: S310
                return Answer(response.status, response.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.read().decode())

    def wait_for(self, node: str, field: str, value: str) -> None:
        """Wait until a node has a value in a field; ``TimeoutError`` says what it has after 60 s."""
        found: list[Any] = []

        def has_it() -> bool:
            found[:] = [self.ask("GET", f"nodes/{node}").body]
            return bool(found[0].get(field) == value)

        try:
            poll(has_it, _STEP_SECONDS, f"{field} {value}")
        except TimeoutError as error:
            raise TimeoutError(f"{error}: {found[0].get(field)}, {found[0].get('last_error')}") from None

    def logs(self) -> str:
        """The ends of the logs of both."""
        lines = []
        for name in self._urls:
            with contextlib.suppress(OSError):
                lines += [f"--- ironic-{name}", *self._log(name).read_text(errors="replace").splitlines()[-60:]]
        return "\n".join(lines)

    def warnings(self) -> Iterator[str]:
        """The lines of both logs that the driver, or oslo.messaging, has written as warnings or errors."""
        for name in self._urls:
            for line in self._log(name).read_text(errors="replace").splitlines():
                if (" WARNING " in line or " ERROR " in line) and ("msgbus" in line or "oslo_messaging" in line):
                    yield f"ironic-{name}: {line}"

    def _configuration(self, name: str) -> pathlib.Path:
        return self._folder / f"{name}.conf"

    def _log(self, name: str) -> pathlib.Path:
        return self._folder / f"{name}.log"

    def _serves(self) -> bool:
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise RuntimeError(f"ironic-{name} ended with {process.returncode}")
        try:
            return bool(self.ask("GET", "drivers").body.get("drivers"))
        except OSError:
            return False  # It does not listen yet.

    def _start(self, name: str) -> None:
        command = [str(self._bin / f"ironic-{name}"), "--config-file", str(self._configuration(name))]
        with self._log(name).open("ab") as log:
            self._processes[name] = subprocess.Popen(
                # It ends with the tests, however those end: and takes its children along.
                ["setpriv", "--pdeathsig", "TERM", *command],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _kill(self) -> None:
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
