"""Runs the suite on a mutant. ``python -m tests.mutants.run NAME`` prints a line of JSON for each check."""

from __future__ import annotations

import sys

import msgspec

from msgbus.conformance.check import Level
from msgbus.conformance.fake import FakeHarness
from msgbus.conformance.report import Recorder
from msgbus.conformance.run import run
from tests.mutants.others import OTHERS
from tests.mutants.ten import TEN


def main(name: str) -> None:
    """Run the checks: of one of the ten all, of the others those of the bare driver.

    The slow ones are left out, unless one of them is to catch this mutant.
    """
    mutant = (TEN | OTHERS)[name]
    mutant.apply()
    slow = any(check.startswith("test_slow") for check in mutant.caught_by)
    level: Level | None = None if name in TEN else "driver"
    for result in run(FakeHarness(), Recorder(), level=level, keyword="" if slow else "not slow"):
        sys.stdout.write(msgspec.json.encode(result).decode() + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
