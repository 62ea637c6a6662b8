"""The counts that are recorded, one file for each version of Python, and what to say where new ones differ."""

from __future__ import annotations

import pathlib
import platform
from importlib.metadata import version

import msgspec

TOLERANCE = 0.10
"""The share by which an operation may cost more, or less, than what is recorded."""
LISTED = 10
"""How many functions a complaint names."""
LIBRARIES = ("msgspec", "pyzmq")
"""Their code, as far as it is Python, is counted too."""
RECORD = "MSGBUS_RECORD=1 python -m pytest tests/functional/test_counts.py"
"""How counts are recorded."""

Counts = dict[str, float]
"""What one operation costs, by function."""
Costs = dict[str, dict[str, Counts]]
"""The counts by operation and side."""


class Recorded(msgspec.Struct):
    """A file.

    Attributes:
        libraries: name -> version.
        buses: driver -> its costs.
    """

    libraries: dict[str, str]
    buses: dict[str, Costs]


FILE = pathlib.Path(__file__).parent / "recorded" / f"{'.'.join(platform.python_version_tuple()[:2])}.json"
"""The file of this Python. Another version has other instructions, so its counts cannot be compared."""


def read(path: pathlib.Path = FILE) -> Recorded | None:
    """What is recorded; None if nothing is."""
    return msgspec.json.decode(path.read_bytes(), type=Recorded) if path.exists() else None


def record(driver: str, costs: Costs, path: pathlib.Path = FILE) -> None:
    """Put the costs of a driver in the place of those that are recorded."""
    old = read(path)
    buses = {**(old.buses if old else {}), driver: costs}
    libraries = {name: version(name) for name in LIBRARIES}
    path.parent.mkdir(exist_ok=True)
    # Sorted, so that the difference between two versions of the file shows what has changed.
    encoded = msgspec.json.encode(Recorded(libraries, buses), order="deterministic")
    path.write_bytes(msgspec.json.format(encoded, indent=1) + b"\n")


def complaint(what: str, recorded: Counts, found: Counts) -> str | None:
    """What is wrong with the cost of `what`; None if it is within `TOLERANCE` of what is recorded."""
    before, now = sum(recorded.values()), sum(found.values())
    if before * (1 - TOLERANCE) <= now <= before * (1 + TOLERANCE):
        return None
    share = f"{abs(now - before) / before:.0%}"
    if now < before:
        return (
            f"{what} costs {now:.0f} instructions, {share} less than recorded ({before:.0f}). So that it stays so, "
            f"record it: {RECORD}"
        )
    grown = {name: count - recorded.get(name, 0) for name, count in found.items()}
    shrunk = {name: found.get(name, 0) - count for name, count in recorded.items()}
    lines = [
        f"{what} costs {now:.0f} instructions, {share} more than recorded ({before:.0f}).",
        "The functions that grew most:",
        *(_line(name, recorded, found) for name in sorted(grown, key=lambda name: -grown[name])[:LISTED]),
        "Those that shrank most (a function that has moved is in both lists):",
        *(_line(name, recorded, found) for name in sorted(shrunk, key=lambda name: shrunk[name])[:LISTED]),
        f"If it has to cost that: {RECORD}",
    ]
    return "\n".join(lines)


def _line(name: str, recorded: Counts, found: Counts) -> str:
    before, now = recorded.get(name, 0), found.get(name, 0)
    return f"  {now - before:+8.1f}  ({before:.1f} -> {now:.1f})  {name}"


def other_libraries(recorded: Recorded) -> str:
    """Which libraries are others than when the counts were recorded; empty if none is."""
    others = [
        f"{name} {version(name)} (recorded: {recorded.libraries.get(name)})"
        for name in LIBRARIES
        if version(name) != recorded.libraries.get(name)
    ]
    return f"\nThese are other versions, which may be why: {', '.join(others)}" if others else ""
