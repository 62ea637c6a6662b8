"""What these measurements have found, and how it is kept."""

from __future__ import annotations

import json
import pathlib
from typing import Any, NamedTuple, Self

from benchmarks.results import FIGURES, Figures, write_json

SCENARIOS = {
    "in_flight": "calls in flight",
    "topics": "topics",
    "servers": "servers of a topic",
    "calls": "calls made so far",
}
"""Scenario -> what its points are counted in."""
SCALING_FIGURES = FIGURES | {
    "per_second": "calls/s",
    "client_rss_mb": "client MB",
    "server_rss_mb": "server MB",
    "first_ping_ms": "first ping ms",
    "next_ping_ms": "next ping ms",
    "client_grows_mb": "client grows by MB",
    "client_sockets": "its sockets",
    "client_descriptors": "of all descriptors",
    "server_own_mb": "a server's own MB",
    "server_sockets": "its sockets",
    "server_descriptors": "of all descriptors",
}
"""The figures of scaling, and their headings."""


class Point(NamedTuple):
    """What was found at one place of the axis."""

    scenario: str
    system: str
    x: int
    figures: Figures


class Points:
    """All that a run has found.

    Attributes:
        about: what it was made on: name -> text.
        left_out: what could not be measured -> why.
    """

    def __init__(self) -> None:
        self.about: dict[str, str] = {}
        self.left_out: dict[str, str] = {}
        self.points: list[Point] = []

    def of(self, scenario: str, system: str) -> list[Point]:
        """The points of a line, from left to right."""
        return sorted((it for it in self.points if it[:2] == (scenario, system)), key=lambda point: point.x)

    def systems(self, scenario: str) -> list[str]:
        """The message systems for which there are points."""
        return list(dict.fromkeys(point.system for point in self.points if point.scenario == scenario))

    def as_data(self) -> dict[str, Any]:
        """The same for JSON."""
        points = [point._asdict() for point in self.points]
        return {"about": self.about, "left_out": self.left_out, "points": points}

    def write(self, path: pathlib.Path) -> None:
        """Keep it in a file, which is whole at any time."""
        write_json(path, self.as_data())

    @classmethod
    def read(cls, path: pathlib.Path) -> Self:
        """What a run has kept."""
        data = json.loads(path.read_text())
        points = cls()
        points.about, points.left_out = data["about"], data["left_out"]
        points.points = [Point(**it) for it in data["points"]]
        return points
