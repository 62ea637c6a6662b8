from __future__ import annotations

import sys
import types

import pytest

from msgbus import CapabilityMissing, DriverLoadFailure, TransportURL
from msgbus.drivers.base import Address, Capability, Driver, import_library, raise_missing
from msgbus.drivers.fake import FakeDriver
from tests.support import new_transport


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (Address("topic", "x", "foo"), "topic 'foo' (exchange 'x')"),
        (Address("server", "x", "foo", "h1"), "topic 'foo', server 'h1' (exchange 'x')"),
        (Address("fanout", "x", "foo"), "all servers of topic 'foo' (exchange 'x')"),
        (Address("fanout", "x", "foo", "h1"), "all servers of topic 'foo' (exchange 'x')"),
        (Address("pool", "x", "foo", name="p"), "topic 'foo', pool 'p' (exchange 'x')"),
        (Address("dead", "x", "foo"), "dead letters of topic 'foo' (exchange 'x')"),
        (Address("inbox", name="n"), "inbox 'n'"),
    ],
)
def test_texts_of_addresses(address: Address, text: str) -> None:
    """An address's text says in words where a message goes."""
    assert str(address) == text


def test_import_library_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver's library is imported when it is asked for."""
    module = types.ModuleType("library_of_a_driver")
    monkeypatch.setitem(sys.modules, "library_of_a_driver", module)
    assert import_library("library_of_a_driver", "extra") is module


def test_import_library_that_is_missing() -> None:
    """A driver whose library is missing says how to install it."""
    with pytest.raises(DriverLoadFailure, match=r"pip install 'msgbus\[qpid\]'") as caught:
        import_library("no_such_library_here", "qpid")
    assert caught.value.driver == "qpid"


def test_raise_missing() -> None:
    """What a driver does not declare is refused with its name and the capability's."""
    transport = new_transport()
    with pytest.raises(CapabilityMissing, match="FakeDriver does not declare the capability 'durable'"):
        raise_missing(transport.driver, Capability.DURABLE)
    transport.cleanup()


def test_inspect_is_refused_by_default() -> None:
    """A driver that does not override `inspect` does not have it."""
    transport = new_transport()
    with pytest.raises(CapabilityMissing, match="inspect"):
        Driver.inspect(transport.driver, Address("topic", "x", "foo"))
    transport.cleanup()


def test_a_driver_need_not_list_servers() -> None:
    """One that does not override `known_servers` cannot."""
    transport = new_transport()
    assert Driver.known_servers(transport.driver) is None
    transport.cleanup()


def test_default_state_is_the_class() -> None:
    """Where a driver says nothing about its state, its class's name stands for it."""

    class Silent(FakeDriver):
        state = Driver.state

    transport = new_transport()
    assert Silent(transport.conf, TransportURL("fake"), transport.loop).state == "Silent"
    transport.cleanup()


def test_a_driver_has_to_do_all_of_it() -> None:
    """A driver that lacks a method of the contract cannot be made, and one without options says so."""

    class Half(Driver):
        def close(self) -> None:
            pass

    with pytest.raises(TypeError):
        Half(None, None, None)  # type: ignore[abstract, arg-type]  # this is what must not work
    with pytest.raises(NotImplementedError):
        Driver.options()
