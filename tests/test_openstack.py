"""What judges the driver for oslo.messaging: what it records, and the section of the page that is made of it."""

from __future__ import annotations

import importlib.util
import pathlib
from types import ModuleType

import msgspec
import pytest

from tests.openstack.figures import PROPERTY, Load, Pair, Rate, read, record, reported
from tests.support import ROOT

FOLDER = ROOT / "docs" / "openstack"
LOAD = Load("cut", "RabbitMQ 4.3", "msgbus", 14, 900, 2, 1.25, {"call: ValueError": 3}, 3000, 4, 5)
PAIR = Pair("Qpid", "msgbus", "msgbus", "call", "A call is answered.")
RATE = Rate("Qpid", "msgbus", "msgbus", [100.0, 300.0, 200.0], [1000.0])


class Report:
    """The report of a test."""

    def __init__(self, figures: Load | Pair | Rate, outcome: str = "passed", when: str = "call") -> None:
        self.outcome = outcome
        self.when = when
        self.user_properties = [(PROPERTY, msgspec.json.encode(figures).decode()), ("other", "thing")]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """The script that makes the section."""
    spec = importlib.util.spec_from_file_location("generate_openstack", FOLDER / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_section_shows_the_recorded_figures(generate: ModuleType) -> None:
    """The section of the page is what the script makes of the recorded figures, and nothing else."""
    assert generate.PAGE.read_text() == generate.page(), "run docs/openstack/generate.py"


def test_figures_of_tests_that_passed_are_recorded(tmp_path: pathlib.Path) -> None:
    """Only a test that passed counts, and its figures come back as they were."""
    reports = [Report(PAIR), Report(LOAD, "failed"), Report(RATE), Report(PAIR, when="teardown")]
    assert reported(reports) == [PAIR, RATE]
    record([PAIR, RATE], {"date": "today"}, tmp_path)
    found = read("pairs", tmp_path)
    assert found is not None
    assert (found.about, found.found) == ({"date": "today"}, [PAIR])
    assert read("load", tmp_path) is None


def test_a_run_replaces_the_figures_of_the_run_before(tmp_path: pathlib.Path) -> None:
    """All figures of a kind are of one run: those of earlier runs are gone, and other kinds stay."""
    record([PAIR, RATE], {"date": "yesterday"}, tmp_path)
    record([msgspec.structs.replace(PAIR, check="cast")], {"date": "today"}, tmp_path)
    found = read("pairs", tmp_path)
    assert found is not None
    assert [it.check for it in found.found if isinstance(it, Pair)] == ["cast"]
    rates = read("rates", tmp_path)
    assert rates is not None
    assert rates.about == {"date": "yesterday"}


def test_the_section_sums_figures_up(generate: ModuleType) -> None:
    """Rounds become their median, checks are counted for each pair, and what did not pass is named."""
    assert "| 200 (100 - 300) | 1,000 (1,000 - 1,000) |" in "\n".join(generate.rates([RATE]))
    other = msgspec.structs.replace(PAIR, client="stock", check="cast")
    table = "\n".join(generate.pairs([PAIR, msgspec.structs.replace(PAIR, check="cast"), other]))
    assert "| Qpid | msgbus | msgbus | 2 | none |" in table
    assert "| Qpid | stock | msgbus | 1 | call |" in table
    row = "| connections cut | RabbitMQ 4.3 | msgbus | 14 | 902 | 2 | 1.2 s | 3,000 | 4 | 5 | 3 |"
    assert row in "\n".join(generate.loads([LOAD]))
