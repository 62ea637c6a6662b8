"""Warnings of names in configuration files that are nearly ours. A service shares its files with others' options."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Collection

LOG = logging.getLogger(__name__)

CUTOFF = 0.85
"""How alike two names are, for `difflib`, of which one was meant for the other."""


def warn_of_misspelt(files: Collection[str]) -> None:
    """Log a warning of each group, and each name in group DEFAULT, that nobody knows and that is nearly one of ours.

    In a driver's own group such a name is an error: nobody else has options there.
    """
    if not files:
        return
    from oslo_config import cfg

    from msgbus import options

    known_groups: set[str] = set()
    known_names = {name for opt in options.CORE_OPTS for name in (opt.dest, opt.name)}
    ours = sorted(known_names)
    for group, opts in options.list_opts():
        known_groups.add(group or "DEFAULT")
        for opt in opts:
            known_names.update(name for name in (opt.dest, opt.name) if group is None)
            known_names.update(old.name for old in opt.deprecated_opts if old.name)
    for path in files:
        sections: dict[str, dict[str, list[str]]] = {}
        cfg.ConfigParser(path, sections).parse()
        for group in sections:
            if near := _meant(group, known_groups):
                LOG.warning("%s: there is no group [%s]; did you mean [%s]?", path, group, near)
        for name in sections.get("DEFAULT", ()):
            if name not in known_names and (near := _meant(name, ours)):
                LOG.warning("%s: there is no option %s; did you mean %s?", path, name, near)


def _meant(name: str, known: Collection[str]) -> str | None:
    if name in known or name.lower() in known:
        return None
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=CUTOFF)), None)
