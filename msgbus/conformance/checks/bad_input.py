"""Messages that are foreign or damaged are dropped, and do not disturb servers and clients."""

from __future__ import annotations

import random
from typing import Any

import pytest

from msgbus.conformance.bus import Bus
from msgbus.conformance.check import check
from msgbus.conformance.checks.wire import envelope, payload, policy, raw
from msgbus.conformance.waiting import Task
from msgbus.drivers.base import Address, Message

ODD_VALUES: list[Any] = [
    *(None, True, 0, -1, 2**31, 2**63, 2**64, 10**400, 0.5, -0.0, 1e308, -1e308, "", "x", "\x00", "x" * 300, "ü" * 200),
    *([], [1], {}, {"x": 1}, {"key": {}}, [[[[]]]]),
]
KEYS = ("method", "args", "_unique_id", "namespace", "version", "_msg_id", "_reply_q", "_timeout", "_msgbus", "key")
HINTS = ("ttl", "at", "policy", "window", "window_bytes", "confirms", "kind", "unknown")


class BadInputChecks:
    """Of messages that no msgbus peer would send."""

    def _send_all(self, bus: Bus, address: Address, messages: list[Message]) -> None:
        """Send them, and check that the server still works, with all its threads and its whole prefetch."""
        for future in [bus.driver.send(address, message, mandatory=True) for message in messages]:
            future.result(30)
        client = bus.client()
        calls = [Task(client.prepare(server="s1").call, {}, "echo", value=n) for n in range(10)]
        assert [call.result() for call in calls] == list(range(10))
        assert [client.call({}, "echo", value=n) for n in range(10)] == list(range(10))

    @check("bus", since="0.1")
    def test_bytes_that_are_not_a_message_are_dropped(self, bus: Bus) -> None:
        """Random bytes, other encodings, and unknown content types are dropped."""
        bus.serve(executor_thread_pool_size=4, rpc_prefetch=4)
        dice = random.Random(1)
        bodies = [dice.randbytes(dice.randrange(200)) for _ in range(200)]
        bodies += [b"", b"{}", b"[]", b"null", b"7", b'"x"', b"{", b"\xff" * 100, "{}".encode("utf-16")]
        bodies += [b"[" * 100_000, b'{"a":' * 100_000, b"\x91" * 100_000]
        bodies += [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff"]
        types = ["application/json", "application/msgpack", "", "text/plain", "application/x-python-serialize", "ü"]
        messages = [raw(body, kind) for body in bodies for kind in types[:2]]
        messages += [raw(envelope(payload("note", "k")), kind) for kind in types[2:]]
        for address in (bus.address(), bus.address("server", server="s1")):
            self._send_all(bus, address, messages)
        assert bus.journal.entries() == []

    @check("bus", since="0.1")
    @pytest.mark.parametrize("delivery", ["at_most_once", "at_least_once"])
    def test_a_damaged_request_is_run_or_dropped(self, bus: Bus, delivery: str) -> None:
        """A valid request with one byte changed, or cut off after any byte, is run or dropped."""
        bus.serve(executor_thread_pool_size=4, rpc_prefetch=4, rpc_reply_grace=0.1, rpc_cast_retries=0)
        dice = random.Random(2)
        reply_to = bus.inbox()
        for more in ({}, {"_msg_id": "c" * 32, "_reply_q": reply_to}):
            valid = envelope(payload("note", "k", **policy(delivery), **more))
            messages = [raw(valid[:at]) for at in range(len(valid))]
            for at in range(len(valid)):
                broken = bytearray(valid)
                broken[at] = dice.choice([*b'\x00"\\{}[],:0a', 0xFF, broken[at] ^ 1])
                messages.append(raw(bytes(broken)))
            self._send_all(bus, bus.address("server", server="s1"), messages)

    @check("bus", since="0.1")
    @pytest.mark.parametrize("delivery", ["at_most_once", "at_least_once"])
    @pytest.mark.parametrize("key", KEYS)
    def test_values_of_wrong_types_do_no_harm(self, bus: Bus, key: str, delivery: str) -> None:
        """A request with parts of wrong types is run or dropped."""
        bus.serve(executor_thread_pool_size=4, rpc_prefetch=4, rpc_reply_grace=0.1, rpc_cast_retries=0)
        known = {**policy(delivery), "_msg_id": "c" * 32, "_reply_q": bus.inbox()}
        requests = [{**payload("note", "k", **known), key: value} for value in ODD_VALUES]
        requests += [{**payload("note", "k", **policy(delivery)), key: value} for value in ODD_VALUES]
        requests += [{**payload("note", "k", **known), key: "x" * 300} for _ in range(8)]
        if key == "_msgbus":
            for hint in HINTS:
                for method in ("note", "count"):
                    # (A stream with a window of 0 is valid: it waits for credit.)
                    odd = [v for v in ODD_VALUES if hint != "window" or not isinstance(v, int | float) or v > 0]
                    hints = [{"policy": delivery, hint: value} for value in odd]
                    args = {"key": "k"} | ({"n": 3} if method == "count" else {})
                    requests += [{**payload(method, "k", **known), "args": args, "_msgbus": hint} for hint in hints]
        elif key == "args":
            names = ("", "ctxt", "self", "*", "kéy", "1 2")
            requests += [{**payload("note", "k", **known), "args": {name: 1}} for name in names]
        self._send_all(bus, bus.address("server", server="s1"), [raw(envelope(request)) for request in requests])

    @check("bus", since="0.1", builds_on=("test_an_inbox_keeps_the_order",))
    def test_a_client_drops_invalid_replies(self, bus: Bus) -> None:
        """Invalid frames in the client's inbox, and answers to unknown calls, do not disturb waiting calls."""
        bus.serve()
        client = bus.client()
        inbox = Address("inbox", name=bus.inbox())
        gate = bus.gate()
        held = Task(client.call, {}, "hold", key="k", gate=gate)
        stream = client.multicall({}, "gated", key="s", n=3, gate=gate)
        bus.ran("k")
        dice = random.Random(3)
        frames: list[Any] = [{"_msg_id": odd, "result": odd, "failure": odd, "ending": True} for odd in ODD_VALUES]
        frames += [{"_msg_id": "unknown", "result": 1, "failure": None, "ending": True}, {"_msg_id": "unknown"}]
        for kind in ("reply", "started", "items", "keepalive", "declined", "credit", "cancel", "other", None, 7):
            for value in ODD_VALUES:
                hints = {"kind": kind, "inbox": value, "server": value, "items": value, "seq": value, "taken": value}
                frames.append({"_msg_id": "unknown", "result": None, "_msgbus": hints})
                frames.append({"_msg_id": "unknown", "_msgbus": {"kind": kind, "taken": value}})
                frames.append({"_msg_id": "unknown", "_msgbus": {"kind": kind, "confirm": value}})
        sender = bus.new_transport().driver
        messages = [raw(envelope(frame)) for frame in frames] + [raw(dice.randbytes(50)) for _ in range(100)]
        for future in [sender.send(inbox, message, mandatory=True) for message in messages]:
            future.result(30)
        bus.journal.open_gate(gate)
        assert held.result() == "s1"
        assert list(stream) == [0, 1, 2, 3]
        assert client.call({}, "echo", value=1) == 1

    @check("bus", since="0.1", builds_on=("test_an_inbox_keeps_the_order",))
    def test_a_server_drops_invalid_control_frames(self, bus: Bus) -> None:
        """Invalid control frames, and those for calls that do not run there, do not disturb the calls that do."""
        bus.serve()
        client = bus.client()
        inbox = Address("inbox", name=client.call({}, "inbox"))
        stream = client.multicall({}, "count", n=1000)
        assert next(stream) == 0
        frames: list[Any] = []
        for kind in ("credit", "cancel", "keepalive", "confirm", "other"):
            for value in ODD_VALUES:
                frames.append({"_msg_id": "unknown", "_msgbus": {"kind": kind, "taken": value}})
                frames.append({"_msg_id": value, "_msgbus": {"kind": kind, "taken": 1}})
        for future in [bus.driver.send(inbox, raw(envelope(frame)), mandatory=True) for frame in frames]:
            future.result(30)
        assert list(stream) == list(range(1, 1000))
        assert client.call({}, "echo", value=1) == 1

    @check("bus", since="0.1")
    def test_a_missing_reply_address_does_not_stop_a_server(self, bus: Bus) -> None:
        """Requests whose reply address does not exist are run, and the server continues."""
        bus.serve(executor_thread_pool_size=4, rpc_prefetch=4, rpc_reply_grace=0.2)
        known = {"_msg_id": "c" * 32, "_reply_q": "reply_nobody", **policy("at_least_once")}
        messages = [raw(envelope(payload("note", f"k{n}", **known))) for n in range(50)]
        self._send_all(bus, bus.address("server", server="s1"), messages)
        for n in range(50):
            bus.ran(f"k{n}")
