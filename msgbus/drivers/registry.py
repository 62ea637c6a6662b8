"""The drivers that are installed, and loading one by its name."""

from __future__ import annotations

import difflib
from typing import Any

from msgbus.drivers.base import CONTRACT, Driver
from msgbus.exceptions import DriverLoadFailure
from msgbus.foreign import get_logger

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


def installed_names() -> list[str]:
    """The names of all drivers; none is imported for that.

    The first time in a process stevedore reads files, then it remembers. `msgbus.aio` calls this when it is imported,
    so that no event loop waits for it.
    """
    from stevedore import NamedExtensionManager  # slow to import

    return sorted({point.name for point in NamedExtensionManager(DRIVERS, names=[]).list_entry_points()})


def load_driver_class(name: str) -> type[Driver]:
    """The class of the driver of that name.

    Raises:
        DriverLoadFailure: there is none (the text names the nearest, and all that are installed), it cannot be
            imported, or it was written for another major version of the contract.
    """
    from stevedore import DriverManager

    known = installed_names()  # Looked at first: stevedore would log a warning besides raising.
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise DriverLoadFailure(name, f"no such driver is installed; {hint}there are {', '.join(known)}")
    try:
        cls: Any = DriverManager(DRIVERS, name).driver
    except Exception as exc:
        raise DriverLoadFailure(name, exc) from exc
    if not (isinstance(cls, type) and issubclass(cls, Driver)):
        raise DriverLoadFailure(name, f"{cls!r} is not a subclass of msgbus.drivers.base.Driver")
    if cls.contract[0] != CONTRACT[0]:
        theirs, ours = (".".join(map(str, version)) for version in (cls.contract, CONTRACT))
        raise DriverLoadFailure(
            name, f"it was written for version {theirs} of the driver contract, and this msgbus has {ours}"
        )
    return cls
