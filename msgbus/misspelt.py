"""Warnings about misspelt names in configuration files, which hold options of other libraries too."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import TYPE_CHECKING

from msgbus import configuration
from msgbus.drivers.registry import installed_drivers
from msgbus.foreign import get_logger

if TYPE_CHECKING:
    from oslo_config import cfg

LOG = get_logger(__name__)

CUTOFF = 0.85
"""How similar two names are, for `difflib`, if one is likely a misspelling of the other."""
CUTOFF_IN_GROUP = 0.75
"""The same in a group in which few others have options."""
PREFIX = "msgbus"
"""The prefix of the drivers' groups: a group with it is ours, unless other code has registered it."""


def warn_of_misspelt(conf: cfg.ConfigOpts, group: str) -> None:
    """Log a warning of each unknown group, and unknown name in group DEFAULT, that looks like one of ours.

    In a driver's own group such a name is an error: no other code has options there.

    Args:
        conf: its files are checked. Names that are registered on it are known.
        group: of the driver that is used.
    """
    ours = {name for opt in (*configuration.CORE_OPTS, *configuration.RPC_OPTS) for name in (opt.dest, opt.name)}
    old = {name.name for opt in configuration.CORE_OPTS for name in opt.deprecated_opts}
    for path, groups in configuration.read_files(conf):
        for name in groups:
            if name not in (group, "DEFAULT") and name.lower() not in conf and (meant := _meant_group(name)):
                LOG.warning("%s: there is no group [%s]; did you mean %s?", path, name, meant)
        for name in groups.get("DEFAULT", ()):
            if (first := name.split()[0]) != name and first in ours:  # The rest is not shown: it may be a password.
                LOG.warning("%s: there is no = right after %s, so it is not set", path, first)
            elif name not in ours | old and name not in conf and (near := nearest(name, ours)):
                LOG.warning("%s: there is no option %s; did you mean %s?", path, name, near)


def warn_of_misspelt_in(conf: cfg.ConfigOpts, group: str, opts: Collection[cfg.Opt]) -> None:
    """Log a warning of each unknown name in a group that other code may have options in too, and that looks like ours.

    Args:
        conf: as for `warn_of_misspelt`.
        group: the group.
        opts: our options in it.
    """
    ours = {name for opt in opts for name in (opt.dest, opt.name)}
    for path, groups in configuration.read_files(conf):
        for name in groups.get(group, ()):
            if name not in ours and name not in conf[group] and (near := nearest(name, ours, CUTOFF_IN_GROUP)):
                LOG.warning("%s: there is no option %s of [%s]; did you mean %s?", path, name, group, near)


def _meant_group(name: str) -> str:
    """The groups of drivers that may have been meant; empty if it is one, or belongs to other code."""
    is_ours = name.lower().startswith(PREFIX)
    if not is_ours and not nearest(name.lower(), [f"{PREFIX}{name[len(PREFIX) :].lower()}"]):
        return ""
    by_driver = {driver: found.options()[0] for driver, found in installed_drivers().items()}
    known = sorted(set(by_driver.values()))
    if name.lower() in known:
        return ""
    for driver, group in by_driver.items():
        if name.lower() == f"{PREFIX}_{driver}":  # by another name of the driver's
            return f"[{group}]"
    if near := nearest(name, known):
        return f"[{near}]"
    return " or ".join(f"[{group}]" for group in known) if is_ours else ""


def nearest(name: str, known: Collection[str], cutoff: float = CUTOFF) -> str | None:
    """The known name that a wrong one is likely to be a misspelling of."""
    return next(iter(difflib.get_close_matches(name, sorted(known), n=1, cutoff=cutoff)), None)
