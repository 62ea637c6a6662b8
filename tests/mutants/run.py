"""Runs the suite on a mutant. ``python -m tests.mutants.run NAME [EXPRESSION]`` prints a line of JSON per check."""

from __future__ import annotations

import sys

import msgspec

from msgbus.conformance.fake import FakeHarness
from msgbus.conformance.report import Recorder
from msgbus.conformance.run import run
from tests.mutants.faults import MUTANTS


def main(name: str, keyword: str = "not slow") -> None:
    """Run the checks."""
    MUTANTS[name].apply()
    for result in run(FakeHarness(), Recorder(), keyword=keyword):
        sys.stdout.write(msgspec.json.encode(result).decode() + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
