"""The drivers that are installed, and loading one by its name."""

from __future__ import annotations

import difflib
from functools import cache
from typing import TYPE_CHECKING, Any

from msgbus.drivers.base import CONTRACT, Driver
from msgbus.exceptions import DriverLoadFailure
from msgbus.foreign import get_logger

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

LOG = get_logger(__name__)

DRIVERS = "msgbus.drivers"
"""The entry point group that names the drivers."""


def installed_drivers() -> dict[str, type[Driver]]:
    """The driver classes by entry point name. One that cannot be imported is left out, with a warning in the log."""
    from stevedore import ExtensionManager

    def warn(_manager: object, entry_point: object, error: BaseException) -> None:
        LOG.warning("the driver of entry point %s cannot be loaded: %s", entry_point, error)

    manager: Any = ExtensionManager(DRIVERS, on_load_failure_callback=warn)
    return {extension.name: extension.plugin for extension in manager}


@cache
def entry_points() -> EntryPoints:
    """The entry points of all drivers. This reads files the first time: `msgbus.aio` does it when it is imported."""
    import importlib.metadata  # slow to import

    return importlib.metadata.entry_points(group=DRIVERS)


def load_driver_class(name: str) -> type[Driver]:
    """The class of the driver of that name.

    Raises:
        DriverLoadFailure: there is none (the text names the nearest, and all that are installed), it cannot be
            imported, or it was written for another major version of the contract.
    """
    if name not in entry_points().names:
        entry_points.cache_clear()  # It may have been installed since.
    # Only their names: no driver is imported for that.
    known = sorted(entry_points().names)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise DriverLoadFailure(name, f"no such driver is installed; {hint}there are {', '.join(known)}")
    try:
        cls: Any = entry_points()[name].load()
    except Exception as exc:
        raise DriverLoadFailure(name, exc) from exc
    if not (isinstance(cls, type) and issubclass(cls, Driver)):
        raise DriverLoadFailure(name, f"{cls!r} is not a subclass of msgbus.drivers.base.Driver")
    if cls.contract[0] != CONTRACT[0]:
        theirs, ours = (".".join(map(str, version)) for version in (cls.contract, CONTRACT))
        raise DriverLoadFailure(name, f"it was written for version {theirs} of the contract, and this is {ours}")
    return cls
