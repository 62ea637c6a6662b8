"""How errors of an endpoint reach the caller; versions, namespaces and access."""

from __future__ import annotations

import pytest

from msgbus import (
    AccessDenied,
    InvalidArguments,
    InvalidTarget,
    NoSuchMethod,
    RemoteError,
    RPCDispatcherError,
    RPCVersionCapError,
    SerializationError,
    Target,
    UnsupportedVersion,
)
from msgbus.conformance.bus import Bus
from msgbus.conformance.check import check
from msgbus.conformance.endpoint import Trouble


class ErrorChecks:
    """What callers see raised."""

    @check("bus", since="0.1")
    def test_builtin_exceptions_are_raised_as_themselves(self, bus: Bus) -> None:
        """Built-in exceptions are raised with their arguments, and with the remote traceback as a note."""
        bus.serve()
        with pytest.raises(ValueError, match="bad: value") as caught:
            bus.client().call({}, "fail", kind="value")
        assert caught.value.args == ("bad: value", 7)
        assert "endpoint.py" in "".join(caught.value.__notes__)

    @check("bus", since="0.1")
    def test_other_exceptions_become_remote_errors(self, bus: Bus) -> None:
        """Other exceptions become `RemoteError`, with the type, the text and the traceback."""
        bus.serve()
        for method in ("fail", "fail_as_expected"):
            arguments = {"kind": "trouble"} if method == "fail" else {}
            with pytest.raises(RemoteError) as caught:
                bus.client().call({}, method, **arguments)
            assert caught.value.exc_type == "Trouble"
            assert caught.value.traceback, "the remote traceback is missing"
            assert "Trouble" in str(caught.value)

    @check("bus", since="0.1")
    def test_allowed_exceptions_are_raised_as_themselves(self, bus: Bus) -> None:
        """An exception of a module on the allow-list is rebuilt with its arguments."""
        bus.serve()
        client = bus.client(transport=bus.new_transport(["msgbus.conformance.endpoint"]))
        with pytest.raises(Trouble) as caught:
            client.call({}, "fail", kind="trouble")
        assert caught.value.args == ("deep", 7)
        with pytest.raises(Trouble, match="as expected"):
            client.call({}, "fail_as_expected")

    @check("bus", since="0.1")
    def test_an_exception_that_cannot_be_encoded_is_a_remote_error(self, bus: Bus) -> None:
        """An exception whose arguments and text cannot be encoded becomes a `RemoteError`."""
        bus.serve()
        with pytest.raises(RemoteError) as caught:
            bus.client().call({}, "fail", kind="unprintable")
        assert caught.value.exc_type == "Unprintable"

    @check("bus", since="0.1")
    def test_a_result_that_cannot_be_encoded_is_an_error(self, bus: Bus) -> None:
        """A call whose result cannot be encoded fails at once, and the server continues."""
        bus.serve()
        with pytest.raises(SerializationError, match="unserialisable"):
            bus.client().call({}, "unserialisable")
        assert bus.client().call({}, "echo", value=1) == 1

    @check("bus", since="0.1", builds_on=("test_an_inbox_keeps_the_order",))
    @pytest.mark.parametrize("method", ["nowhere", "attribute", "nötig", "__class__.x"])
    def test_a_missing_method_is_reported_by_name(self, bus: Bus, method: str) -> None:
        """The error for a missing method has its name."""
        bus.serve()
        with pytest.raises(NoSuchMethod) as caught:
            bus.client().call({}, method)
        assert method in str(caught.value)
        with pytest.raises(NoSuchMethod):
            list(bus.client().multicall({}, method))

    @check("bus", since="0.1")
    def test_arguments_that_do_not_fit_are_refused(self, bus: Bus) -> None:
        """Missing, unknown and duplicate arguments raise `InvalidArguments`, before the method runs."""
        bus.serve()
        for arguments in ({}, {"key": "k", "other": 1}, {"self": 1, "key": "k"}):
            with pytest.raises(InvalidArguments):
                bus.client().call({}, "note", **arguments)
        assert bus.journal.entries("run") == []

    @check("bus", since="0.1")
    @pytest.mark.parametrize("method", ["_private", "__init__", "__class__", "_note"])
    def test_private_methods_cannot_be_called(self, bus: Bus, method: str) -> None:
        """A name with a leading underscore cannot be called, and gives the same error as a missing method."""
        bus.serve()
        with pytest.raises((AccessDenied, NoSuchMethod)):
            bus.client().call({}, method)

    @check("bus", since="0.1")
    def test_access_policies(self, bus: Bus) -> None:
        """A server can allow only marked methods, or all."""
        bus.serve("explicit", access="explicit")
        bus.serve("legacy", access="legacy")
        explicit, legacy = (bus.client().prepare(server=name) for name in ("explicit", "legacy"))
        assert explicit.call({}, "exposed") == "exposed"
        with pytest.raises(RPCDispatcherError):
            explicit.call({}, "echo")
        assert legacy.call({}, "_private") == "private"

    @check("bus", since="0.1")
    def test_namespaces_and_versions(self, bus: Bus) -> None:
        """A request is served by an endpoint with the same namespace and major version, and no lower minor version."""
        bus.serve()
        books = bus.client().prepare(namespace="books")
        for asked, served in (("2.0", "2.3"), ("2.3", "2.3"), ("1.0", "1.7"), ("1.7", "1.7"), (None, "1.7")):
            assert books.prepare(version=asked).call({}, "edition") == served
        assert books.prepare(namespace="library", version="2.1").call({}, "edition") == "2.3"
        for namespace, version in (("books", "2.4"), ("books", "3.0"), ("books", "0.9"), ("films", "1.0")):
            with pytest.raises(UnsupportedVersion):
                books.prepare(namespace=namespace, version=version).call({}, "edition")
        with pytest.raises(NoSuchMethod):
            bus.client().call({}, "edition")
        with pytest.raises(NoSuchMethod):
            books.prepare(version="2.0").call({}, "echo")

    @check("bus", since="0.1", builds_on=("test_an_inbox_keeps_the_order",))
    def test_the_version_cap_refuses_requests(self, bus: Bus) -> None:
        """A request above the cap is refused before it is sent, by each verb."""
        bus.serve()
        books = bus.client(version_cap="2.1").prepare(namespace="books")
        assert books.prepare(version="2.1").call({}, "edition") == "2.3"
        above = books.prepare(version="2.2")
        assert (above.can_send_version(), above.can_send_version("2.0")) == (False, True)
        for verb in (above.call, above.cast, above.fanout_cast, above.multicall):
            with pytest.raises(RPCVersionCapError):
                verb({}, "edition")

    @check("bus", since="0.1")
    def test_invalid_targets_are_refused(self, bus: Bus) -> None:
        """A call needs one server to answer it; a client needs a topic."""
        bus.serve()
        with pytest.raises(InvalidTarget):
            bus.client().prepare(fanout=True).call({}, "echo")
        with pytest.raises(InvalidTarget):
            bus.client_of(Target(server="s1"))
