"""msgbus.drivers.zmq.gate: what is logged of those who are not let in."""

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


def test_one_line_for_each_address_and_minute(
    gate: Gate, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often somebody tries, and however many there are."""
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    for _ in range(5):
        gate._refused("10.0.0.1", "a")
        gate._refused("10.0.0.2", "a")
    assert len(caplog.records) == 2
    now += 61
    gate._refused("10.0.0.1", "a")
    assert len(caplog.records) == 3
    for n in range(5000):
        gate._refused(f"many {n}", "a")
    assert len(caplog.records) <= 3 + zmq_gate.ADDRESSES
    assert len(gate._quiet) <= zmq_gate.ADDRESSES


def test_a_descriptor_that_is_in_use_for_something_else(gate: Gate, tmp_path: pathlib.Path) -> None:
    """By the time that an event is read its connection may be gone; whatever has the number then is left as it was."""
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        before = os.listdir("/proc/self/fd")
        for _ in range(3):
            gate.on_event({"event": zmq.EVENT_ACCEPTED, "value": directory, "endpoint": b"tcp://127.0.0.1:1"})
        assert os.listdir("/proc/self/fd") == before
        os.fstat(directory)
    finally:
        os.close(directory)


def test_an_event_without_an_address(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """Where the connection is gone before it was looked at, the line is written without."""
    endpoint = b"tcp://127.0.0.1:1"
    gate.on_event({"event": zmq.EVENT_ACCEPTED, "value": 999_999, "endpoint": endpoint})
    gate.on_event({"event": zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, "value": 5, "endpoint": endpoint})
    gate.on_event({"event": zmq.EVENT_DISCONNECTED, "value": 999_999, "endpoint": endpoint})
    gate.on_event({"event": zmq.EVENT_DISCONNECTED, "value": 999_999, "endpoint": endpoint})
    (record,) = caplog.records
    assert "somebody from somewhere" in record.getMessage()
