"""The conformance suite's servers, found by a file: each has a place in it, which is known when it is started."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from msgbus.conformance import Harness
from msgbus.conformance.bus import Bus
from msgbus.conformance.checks.faults import BusFaultChecks, DriverFaultChecks
from msgbus.conformance.checks.inboxes import InboxChecks
from msgbus.conformance.checks.patterns import PatternChecks
from msgbus.conformance.checks.policies import PolicyChecks
from msgbus.conformance.checks.sending import SendingChecks
from msgbus.conformance.checks.stopping import StoppingChecks
from msgbus.conformance.checks.subscribing import SubscribingChecks
from msgbus.conformance.checks.verbs import VerbChecks
from msgbus.conformance.endpoint import ServerSpec
from tests.functional.brokers.processes import free_ports
from tests.functional.zmq_faults import cut_tcp

FILE_CHECKS: tuple[type, ...] = (VerbChecks, PolicyChecks, StoppingChecks)
"""Those that start servers by name, which is what a file can know of."""
REDIS_CHECKS: tuple[type, ...] = (
    SendingChecks,
    SubscribingChecks,
    InboxChecks,
    PatternChecks,
    VerbChecks,
    PolicyChecks,
    StoppingChecks,
    DriverFaultChecks,
    BusFaultChecks,
)
"""Those for which it matters how nodes find each other, and how they notice that one is gone."""


class FileHarness(Harness):
    """A file that is written by `FileBus`."""

    def __init__(self, path: pathlib.Path) -> None:
        path.write_text("{}")
        self.path = path
        self.url = f"zmq://?matchmaker=file&matchmaker_file={path}"

    def cut(self) -> None:
        cut_tcp()


class FileBus(Bus):
    """Gives each server that a check starts a place in the file, and has it listen there."""

    def __init__(self, harness: FileHarness, folder: pathlib.Path) -> None:
        self._path = harness.path
        self._topics: dict[str, dict[str, str]] = {}
        super().__init__(harness, folder)

    def spec(self, server: str, topic: str | None = None, *args: Any, **more: Any) -> ServerSpec:
        found = super().spec(server, topic, *args, **more)
        servers = self._topics.setdefault(found.topic, {})
        if server not in servers:
            servers[server] = f"127.0.0.1:{free_ports(1)[0]}"
            aside = self._path.with_suffix(".new")
            aside.write_text(json.dumps(self._topics))
            aside.rename(self._path)
        found.url += f"&listen=tcp://{servers[server]}"
        return found
