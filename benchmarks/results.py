"""What a run has found: every measurement, medians with their spread, ratios, and what became of the targets."""

from __future__ import annotations

import json
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

from benchmarks.catalogue import OUR_ROWS, OURS, SYSTEMS
from benchmarks.payloads import SMALL
from benchmarks.targets import IMPORT_MS, TARGETS, Target

Figures = dict[str, float]
"""The figures of one measurement, by name. One that cannot be measured is not there."""

FIGURES = {
    "p50_us": "p50 us",
    "per_second": "per second",
    "client_cpu_us": "client CPU us",
    "server_cpu_us": "server CPU us",
    "broker_cpu_us": "broker CPU us",
    "client_memory_mb": "client peak MB",
    "server_memory_mb": "server peak MB",
}
"""Each figure, in the order of tables, and its heading. CPU is for each operation."""


class Spread(NamedTuple):
    """A figure over all rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Sum up what the rounds found."""
        return cls(statistics.median(values), min(values), max(values))


class Measurement(NamedTuple):
    """One measurement."""

    round: int
    system: str
    workload: str
    size: int
    row: str
    figures: Figures


class Verdict(NamedTuple):
    """What became of a target.

    Attributes:
        value: the ratio, or the figure itself if the limit is absolute.
    """

    target: Target
    value: Spread
    met: bool


class Results:
    """All that a run has found. It may be looked at, and kept, while the run goes on.

    Attributes:
        about: what it was made on, and how: name -> text.
        versions: row -> distribution -> version.
        left_out: what could not be measured -> why.
        import_ms: how long ``import msgbus`` took, in milliseconds, each time.
    """

    def __init__(self) -> None:
        self.about: dict[str, str] = {}
        self.versions: dict[str, dict[str, str]] = {}
        self.left_out: dict[str, str] = {}
        self.import_ms: list[float] = []
        self.measurements: list[Measurement] = []

    def add(self, measurement: Measurement) -> None:
        """Take in a measurement."""
        self.measurements.append(measurement)

    def groups(self) -> list[tuple[str, str, int]]:
        """What was compared: system, workload, and size, in the order of the catalogue."""
        found = {(it.system, it.workload, it.size) for it in self.measurements}
        order = list(dict.fromkeys((it.system, it.workload, it.size) for it in self.measurements))
        systems = list(SYSTEMS)
        return sorted(found, key=lambda group: (systems.index(group[0]), group[2], order.index(group)))

    def rows(self, system: str, workload: str, size: int) -> list[str]:
        """The rows of a group, ours first."""
        group = (system, workload, size)
        names = [it.row for it in self.measurements if (it.system, it.workload, it.size) == group]
        return sorted(
            dict.fromkeys(names), key=lambda name: OUR_ROWS.index(name) if name in OUR_ROWS else len(OUR_ROWS)
        )

    def spread(self, system: str, workload: str, size: int, row: str, figure: str) -> Spread | None:
        """A figure over all rounds; None if it was not measured."""
        values = self._by_round(system, workload, size, row, figure).values()
        return Spread.of(list(values)) if values else None

    def ratio(
        self,
        system: str,
        workload: str,
        size: int,
        other: str,
        figure: str,
        *,
        row: str = OURS,
        others_workload: str | None = None,
    ) -> Spread | None:
        """The figure of msgbus divided by that of another row, taken in each round, and summed up.

        `row` is which row of msgbus. The other one may have had another workload.
        """
        ours = self._by_round(system, workload, size, row, figure)
        theirs = self._by_round(system, others_workload or workload, size, other, figure)
        ratios = [ours[number] / theirs[number] for number in ours if theirs.get(number)]
        return Spread.of(ratios) if ratios else None

    def _by_round(self, system: str, workload: str, size: int, row: str, figure: str) -> dict[int, float]:
        wanted = (system, workload, size, row)
        return {
            it.round: it.figures[figure]
            for it in self.measurements
            if (it.system, it.workload, it.size, it.row) == wanted and figure in it.figures
        }

    def verdicts(self) -> list[Verdict]:
        """What became of each target for which all was measured."""
        found = []
        for target in TARGETS:
            where = (target.system, target.workload, SMALL)
            value = (
                self.spread(*where, target.row, target.name)
                if target.other is None
                else self.ratio(
                    *where, target.other, target.name, row=target.row, others_workload=target.others_workload
                )
            )
            if value is not None:
                found.append(Verdict(target, value, target.is_met(value.median)))
        return found

    @property
    def import_is_met(self) -> bool | None:
        """Whether ``import msgbus`` is as quick as it should be; None if it was not measured."""
        return statistics.median(self.import_ms) <= IMPORT_MS if self.import_ms else None

    def as_data(self) -> dict[str, Any]:
        """The same for JSON: every measurement, and what was made of them."""
        return {
            "about": self.about,
            "versions": self.versions,
            "left_out": self.left_out,
            "import_ms": self.import_ms,
            "targets": [
                {
                    **verdict.target._asdict(),
                    "figure": verdict.target.name,
                    **verdict.value._asdict(),
                    "met": verdict.met,
                }
                for verdict in self.verdicts()
            ],
            "measurements": [it._asdict() for it in self.measurements],
        }

    def write(self, path: pathlib.Path) -> None:
        """Keep it in a file, which is whole at any time."""
        write_json(path, self.as_data())

    @classmethod
    def read(cls, path: pathlib.Path) -> Self:
        """What a run has kept."""
        data = json.loads(path.read_text())
        results = cls()
        results.about, results.versions = data["about"], data["versions"]
        results.left_out, results.import_ms = data["left_out"], data["import_ms"]
        results.measurements = [Measurement(**it) for it in data["measurements"]]
        return results


def write_json(path: pathlib.Path, data: Any) -> None:
    """Write a file that is whole at any time, and the same for the same data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.new")
    beside.write_text(json.dumps(data, indent=1) + "\n")
    beside.replace(path)
