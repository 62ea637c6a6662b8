"""Runs the suite on a mutant. ``python -m tests.mutants.run NAME`` prints a line of JSON for each check."""

from __future__ import annotations

import sys

import msgspec

from msgbus.conformance.fake import FakeHarness
from msgbus.conformance.report import Recorder
from msgbus.conformance.run import run
from tests.mutants.others import OTHERS
from tests.mutants.ten import TEN


def main(name: str) -> None:
    """Run the checks: of one of the ten all but the slow ones, of the others those of the bare driver."""
    (TEN | OTHERS)[name].apply()
    for result in run(FakeHarness(), Recorder(), level=None if name in TEN else "driver", keyword="not slow"):
        sys.stdout.write(msgspec.json.encode(result).decode() + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
