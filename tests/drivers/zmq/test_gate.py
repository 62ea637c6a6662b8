"""msgbus.drivers.zmq.gate: what is logged about rejected connections."""

from __future__ import annotations

import os
import pathlib

import pytest
import zmq

from msgbus.drivers.toolkit.loop import Loop
from msgbus.drivers.zmq import gate as zmq_gate
from msgbus.drivers.zmq.gate import Gate
from msgbus.drivers.zmq.security import Security


@pytest.fixture
def gate() -> Gate:
    """Without keys, so that it needs no thread."""
    loop = Loop("test")
    loop.close()
    return Gate(loop, None, Security(None, None, False, ""), "n1")


def test_rejected_connections_are_logged_once_a_minute_for_each_address(
    gate: Gate, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often somebody tries, and however many there are."""
    now = 1000.0
    monkeypatch.setattr(Loop, "now", lambda: now)
    for _ in range(5):
        gate._log_rejected("10.0.0.1", "a")
        gate._log_rejected("10.0.0.2", "a")
    assert len(caplog.records) == 2
    now += 61
    gate._log_rejected("10.0.0.1", "a")
    assert len(caplog.records) == 3
    for n in range(5000):
        gate._log_rejected(f"many {n}", "a")
    assert len(caplog.records) <= 3 + zmq_gate.ADDRESSES_MAX
    assert len(gate._quiet) <= zmq_gate.ADDRESSES_MAX


def test_descriptor_that_is_reused_for_something_else_is_left_open(gate: Gate, tmp_path: pathlib.Path) -> None:
    """The connection of an event may be closed when it is read; what has the descriptor then is left as it was."""
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        before = os.listdir("/proc/self/fd")
        for _ in range(3):
            gate.on_event({"event": zmq.EVENT_ACCEPTED, "value": directory, "endpoint": b"tcp://127.0.0.1:1"})
        assert os.listdir("/proc/self/fd") == before
        os.fstat(directory)
    finally:
        os.close(directory)


def test_rejection_is_logged_without_the_address_if_that_is_unknown(
    gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    """The connection may be closed before its address was found."""
    endpoint = b"tcp://127.0.0.1:1"
    gate.on_event({"event": zmq.EVENT_ACCEPTED, "value": 999_999, "endpoint": endpoint})
    gate.on_event({"event": zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, "value": 5, "endpoint": endpoint})
    gate.on_event({"event": zmq.EVENT_DISCONNECTED, "value": 999_999, "endpoint": endpoint})
    gate.on_event({"event": zmq.EVENT_DISCONNECTED, "value": 999_999, "endpoint": endpoint})
    (record,) = caplog.records
    assert "a connection from an unknown address" in record.getMessage()


@pytest.mark.parametrize(("endpoint", "level"), [(b"ipc:///run/x.sock", "INFO"), (b"tcp://127.0.0.1:1", "WARNING")])
def test_a_handshake_that_was_not_finished_is_a_warning_only_between_hosts(
    endpoint: bytes, level: str, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    """Over TCP it may be a matter of keys; another program of this user has ended, or is busy."""
    caplog.set_level("DEBUG")
    for event in (zmq.EVENT_ACCEPTED, zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, zmq.EVENT_DISCONNECTED):
        gate.on_event({"event": event, "value": 999_999, "endpoint": endpoint})
    (record,) = caplog.records
    assert record.levelname == level
    assert "no answer, or the other side hung up" in record.getMessage()
