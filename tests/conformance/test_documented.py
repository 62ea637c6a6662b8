"""The table of drivers and guarantees in the documentation is made from what was recorded, and that is complete."""

from __future__ import annotations

import importlib.util
import json
import pathlib
from types import ModuleType

import pytest

from msgbus.conformance.suite import Conformance
from tests.support import ROOT

FOLDER = ROOT / "docs" / "drivers"
RECORDED = sorted((FOLDER / "results").glob("*.json"))


def generator() -> ModuleType:
    """The script that makes the page."""
    spec = importlib.util.spec_from_file_location("generate", FOLDER / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_made_from_the_results() -> None:
    """Nobody has changed it by hand, nor forgotten to make it anew."""
    assert (FOLDER / "index.md").read_text() == generator().page()


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_there_is_a_result_for_each_check(path: pathlib.Path) -> None:
    """What was recorded is of the suite as it is; none of it has failed, or could not be judged."""
    found = json.loads(path.read_text())
    assert set(found) == {name for name in dir(Conformance) if name.startswith("test")}
    assert not [name for name, outcome in found.items() if outcome == "failed" or "it builds on" in outcome]
