"""``msgbus drivers``."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any

import click

from msgbus.cli.options import example, json_option, log_options
from msgbus.cli.tables import print_json, print_table

OURS = {
    "kombu": ("kombu", "pip install kombu"),
    "qpid": ("proton", "pip install 'msgbus[qpid]'"),
    "zmq": ("zmq", "pip install pyzmq"),
    "fake": (None, ""),
}
"""Our drivers: the library of each, and how to install it."""


@click.command(epilog=example("msgbus drivers"))
@json_option("One line of JSON for each driver.")
@log_options
def drivers(as_json: bool) -> None:
    """List the drivers, one for each message system: whether each can be used, and its capabilities.

    A transport URL begins with a driver's name, or one of its other names: rabbit://localhost/ is for the driver kombu.
    """
    found = [_describe(name, also) for name, also in _names().items()]
    if as_json:
        print_json(found)
        return
    rows = []
    for driver in found:
        also = f" ({', '.join(driver['aliases'])})" if driver["aliases"] else ""
        rows.append([driver["name"] + also, driver["state"], ", ".join(driver["capabilities"]) or "-"])
    print_table(("driver", "state", "capabilities"), rows)


def _names() -> dict[str, list[str]]:
    """The name of each driver, ours first, and its other names."""
    by_class: dict[str, list[str]] = {}
    for entry_point in _installed():
        by_class.setdefault(entry_point.value, []).append(entry_point.name)
    found: dict[str, list[str]] = {name: [] for name in OURS}
    for names in by_class.values():
        first = next((name for name in names if name in OURS), names[0])
        found[first] = sorted({name for name in names if name != first})
    return found


def _installed() -> list[EntryPoint]:
    from msgbus.drivers.registry import DRIVERS

    return list(entry_points(group=DRIVERS))


def _describe(name: str, aliases: list[str]) -> dict[str, Any]:
    from msgbus.drivers.registry import load_driver_class
    from msgbus.exceptions import DriverLoadFailure

    state, capabilities = "ready", []
    library, command = OURS.get(name, (None, ""))
    # (An imported module may have no spec any more: kombu replaces its module by another object.)
    if library is not None and library not in sys.modules and find_spec(library) is None:
        state = f"library missing: {command}"
    try:
        capabilities = sorted(load_driver_class(name).capabilities)
    except DriverLoadFailure as exc:
        state = f"cannot be loaded: {exc.ex}"
    return {"name": name, "aliases": aliases, "state": state, "capabilities": capabilities}
