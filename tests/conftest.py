"""What all tests share."""

from __future__ import annotations

import signal

import pytest

import msgbus.failed_casts
from msgbus.conformance.report import Recorder


def pytest_configure(config: pytest.Config) -> None:
    """Keep the results of the conformance suite's checks: see `tests.conformance.documented`."""
    config.pluginmanager.register(Recorder(), "msgbus-conformance")
    # If the tests are started by nohup, or in the background of a script, these are ignored; and a program that the
    # tests start would take that over.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def retries_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Casts that raised are run again without much delay."""
    monkeypatch.setattr(msgbus.failed_casts, "RETRY_DELAYS", (0.001,))
