"""The results of the conformance suite are those in the documentation: docs/drivers."""

from __future__ import annotations

import json
import os
from typing import ClassVar

import pytest

from msgbus.conformance.report import Recorder
from msgbus.conformance.suite import Conformance
from tests.support import ROOT

RESULTS = ROOT / "docs" / "drivers" / "results"


class Documented:
    """In front of `Conformance`, it compares the results with those in docs/drivers/results.

    With ``MSGBUS_RECORD=1`` in the environment it writes them instead; docs/drivers/generate.py makes the page of them.

    Attributes:
        column: the heading of the driver's column there, which is also the name of the file.
    """

    column: ClassVar[str]

    def test_the_documentation_is_current(self, pytestconfig: pytest.Config) -> None:
        """Each check came out as the page says, and the page has all checks."""
        recorder = pytestconfig.pluginmanager.get_plugin("msgbus-conformance")
        assert isinstance(recorder, Recorder)
        results = recorder.results.get(type(self).__qualname__, {})
        if set(results) != {name for name in dir(Conformance) if name.startswith("test")}:
            pytest.skip("only a part of the checks was run")
        found = {
            name: result.outcome if result.outcome != "skipped" else result.reason for name, result in results.items()
        }
        assert "failed" not in found.values()
        path = RESULTS / f"{self.column}.json"
        if os.environ.get("MSGBUS_RECORD"):
            path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        assert json.loads(path.read_text()) == found, f"record it: MSGBUS_RECORD=1, then {RESULTS.parent}/generate.py"
