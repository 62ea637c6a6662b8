"""What all tests share."""

from __future__ import annotations

import pytest

from msgbus.conformance.report import Recorder


def pytest_configure(config: pytest.Config) -> None:
    """Keep what comes of the checks of the conformance suite: see `tests.documented`."""
    config.pluginmanager.register(Recorder(), "msgbus-conformance")
