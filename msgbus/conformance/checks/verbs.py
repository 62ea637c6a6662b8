"""What each verb returns and raises; contexts, nested calls, gathers and pings."""

from __future__ import annotations

from typing import Any

import pytest

from msgbus import CastsFailed, MessageTooLarge, SerializationError
from msgbus.conformance.bus import Bus
from msgbus.conformance.check import check
from msgbus.conformance.waiting import Task, gather, until
from msgbus.drivers.base import Capability

VALUES = [
    None,
    True,
    0,
    -(2**63),
    2**64 - 1,
    1.5,
    "",
    'Größe 漢字 🐇 \x00 \u2028 "quoted" \\',
    [],
    {},
    [None, [1, [2, [3, {"a": [{}]}]]]],
    {"": 1, "key": {"deep": {"deeper": [None, "x"]}}, "result": 1, "_msgbus": 2, "oslo.message": "3"},
    "x" * (1 << 20),
    list(range(10_000)),
]


class VerbChecks:
    """Of `call`, `cast`, `cast_many`, `fanout_cast`, `multicall`, `gather` and `ping`."""

    @check("bus", since="0.1", builds_on=("test_an_inbox_keeps_the_order",))
    @pytest.mark.parametrize("codec", ["json", "msgpack"])
    def test_values_come_back_as_they_were_sent(self, bus: Bus, codec: str) -> None:
        """Plain data of every kind is unchanged, as an argument, a result and an item of a stream."""
        bus.serve()
        client = bus.client(transport=bus.new_transport(rpc_codec=codec))
        for value in VALUES:
            # Each before its assert: for long values, pytest would look for differences longer than a check may take.
            is_same = client.call({}, "echo", value=value) == value
            assert is_same, f"a call returned something else than {value!r:.200}"
            is_same = list(client.multicall({}, "echo", value=value)) == [value]
            assert is_same, f"a stream had something else than {value!r:.200}"

    @check("bus", since="0.1")
    def test_binary_data_travels_with_msgpack(self, bus: Bus) -> None:
        """Bytes come back as bytes."""
        bus.serve()
        client = bus.client(transport=bus.new_transport(rpc_codec="msgpack"))
        data = {"blob": bytes(range(256)), "list": [b"", b"\xff"]}
        assert client.call({}, "echo", value=data) == data

    @check("bus", since="0.1")
    def test_both_codecs_at_one_server(self, bus: Bus) -> None:
        """A server answers each client in the codec of its request."""
        bus.serve()
        one, other = (bus.client(transport=bus.new_transport(rpc_codec=codec)) for codec in ("json", "msgpack"))
        for n in range(10):
            assert one.call({}, "echo", value=n) == n
            assert other.call({}, "echo", value=b"x" * n) == b"x" * n

    @check("bus", since="0.1", builds_on=("test_an_inbox_keeps_the_order",))
    def test_too_large_is_an_error_of_the_caller(self, bus: Bus) -> None:
        """Each verb raises `MessageTooLarge` for a request over the message system's limit, and works afterwards."""
        bus.serve()
        client = bus.client()
        huge = "x" * (bus.harness.largest + 1)
        for verb in (client.call, client.cast, client.fanout_cast, client.prepare(server="s1").call):
            with pytest.raises(MessageTooLarge):
                verb({}, "note", key=huge)
        with pytest.raises(MessageTooLarge):
            list(client.multicall({}, "note", key=huge))
        assert client.call({}, "echo", value="small") == "small"
        assert bus.journal.entries("run") == []

    @check("bus", since="0.1", builds_on=("test_an_inbox_keeps_the_order",))
    @pytest.mark.parametrize("delivery", ["at_most_once", "at_least_once"])
    def test_an_answer_that_is_too_large_is_an_error(self, bus: Bus, delivery: Any) -> None:
        """A call whose answer is too large fails at once, and the method is not run again."""
        bus.serve()
        client = bus.client(delivery=delivery)
        with pytest.raises(MessageTooLarge):
            client.call({}, "big", size=bus.harness.largest)
        with pytest.raises(MessageTooLarge):
            list(client.multicall({}, "big_items", n=1, size=bus.harness.largest))
        assert client.call({}, "echo", value=1) == 1

    @check("bus", since="0.1")
    def test_cast_returns_before_it_has_run(self, bus: Bus) -> None:
        """A cast returns None when it is sent; it runs once, and its result is dropped."""
        bus.serve()
        client = bus.client()
        gate = bus.gate()
        assert client.cast({}, "hold", key="k", gate=gate) is None
        bus.ran("k")
        assert bus.journal.entries("done") == []
        bus.journal.open_gate(gate)
        bus.saw("done", "k")
        assert client.call({}, "echo", value=1) == 1
        assert len(bus.journal.entries("run", "k")) == 1

    @check("bus", since="0.1")
    @pytest.mark.parametrize("delivery", ["at_most_once", "at_least_once"])
    def test_cast_many_sends_each_once(self, bus: Bus, delivery: Any) -> None:
        """Of many casts that are on their way at once, each runs once; `cast_many` returns their number."""
        bus.serve("s1", "s2")
        client = bus.client(transport=bus.new_transport(rpc_send_window=20), delivery=delivery)
        keys = [f"{n}" for n in range(300)]
        assert client.cast_many({}, (("note", {"key": key}) for key in keys)) == 300
        until(lambda: len(bus.journal.entries("run")) >= 300, "300 casts")
        assert client.call({}, "echo", value=1) == 1
        assert sorted(entry.key for entry in bus.journal.entries("run")) == sorted(keys)
        assert client.cast_many({}, []) == 0

    @check("bus", since="0.1")
    def test_cast_many_stops_at_an_error(self, bus: Bus) -> None:
        """`CastsFailed` says which request failed first, and why; confirmed requests run, later ones do not."""
        bus.serve()
        client = bus.client()
        requests = [("note", {"key": f"{n}"}) for n in range(10)]
        requests[5] = ("note", {"key": "x" * (bus.harness.largest + 1)})
        with pytest.raises(CastsFailed) as caught:
            client.cast_many({}, requests)
        failure = caught.value
        assert isinstance(failure.error, MessageTooLarge), f"it failed with {failure.error!r}"
        assert (failure.index, len(failure.failed), failure.unknown) == (5, 1, [])
        assert failure.confirmed == failure.begun - 1
        for key in range(failure.begun):
            if key != failure.index:
                bus.ran(f"{key}")
        assert client.call({}, "echo", value=1) == 1
        assert len(bus.journal.entries("run")) == failure.confirmed

    @check("bus", since="0.1")
    def test_a_cast_to_a_generator_runs_it_to_its_end(self, bus: Bus) -> None:
        """A cast to a generator method runs it to its end, and drops its items."""
        bus.serve()
        bus.client().cast({}, "count", n=500, key="k")
        bus.saw("done", "k")

    @check("bus", since="0.1")
    @pytest.mark.parametrize("n", [0, 1, 2, 500])
    def test_call_on_a_generator_gives_its_last_value(self, bus: Bus, n: int) -> None:
        """A call of a generator method returns its last value, or None if there is none."""
        bus.serve()
        assert bus.client().call({}, "count", n=n) == (n - 1 if n else None)

    @check("bus", since="0.1", builds_on=("test_an_inbox_keeps_the_order",))
    def test_multicall_on_a_plain_method_gives_one_item(self, bus: Bus) -> None:
        """A multicall of a plain method yields its result as the only item, also None or a list."""
        bus.serve()
        client = bus.client()
        for value in ("x", None, [1, 2], []):
            assert list(client.multicall({}, "echo", value=value)) == [value]

    @check("bus", since="0.1", builds_on=("test_an_inbox_keeps_the_order",))
    def test_contexts_travel(self, bus: Bus) -> None:
        """The handler gets the caller's context unchanged, from `call` and `multicall`."""
        bus.serve()
        context = {"user": "jürgen", "roles": ["a", "b"], "deep": {"x": None}, "": 1}
        assert bus.client().call(context, "context") == context
        assert list(bus.client().multicall(context, "context")) == [context]
        assert bus.client().call({}, "context") == {}

    @check("bus", since="0.1")
    def test_nested_calls(self, bus: Bus) -> None:
        """A handler may call another service, its own, or a chain of services."""
        bus.serve("s1", "s2")
        other = f"{bus.topic}-other"
        bus.serve("o1", topic=other)
        client = bus.client()
        assert client.call({}, "nested", topic=other, method="note", arguments={"key": "k"}) == "o1"
        assert client.call({}, "nested", topic=bus.topic, method="echo", arguments={"value": 7}) == 7
        chain: dict[str, Any] = {"topic": other, "method": "echo", "arguments": {"value": "end"}}
        for n in range(6):
            chain = {"topic": bus.topic if n % 2 else other, "method": "nested", "arguments": chain}
        assert client.call({}, "nested", **chain) == "end"

    @check("bus", since="0.1")
    def test_many_nested_calls_at_once(self, bus: Bus) -> None:
        """Handlers that wait for other handlers do not block one another while there are enough threads."""
        bus.serve("s1", "s2", executor_thread_pool_size=64)
        client = bus.client()

        def nested(n: int) -> Any:
            return client.call({}, "nested", topic=bus.topic, method="echo", arguments={"value": n})

        assert gather([Task(nested, n) for n in range(30)]) == list(range(30))

    @check("bus", since="0.1", builds_on=("test_a_fanout_goes_to_all",))
    def test_ping_gathers_all_servers(self, bus: Bus) -> None:
        """Each server answers with its name and process; with a server in the target, only that one answers."""
        bus.serve("s1", "s2", "s3")
        answers = bus.client().ping(timeout=3)
        assert sorted(answer["server"] for answer in answers) == ["s1", "s2", "s3"]
        assert all(answer["topic"] == bus.topic and answer["pid"] and answer["seconds"] >= 0 for answer in answers)
        assert [answer["server"] for answer in bus.client().prepare(server="s2").ping(timeout=3)] == ["s2"]

    @check("bus", since="0.1", builds_on=("test_a_fanout_goes_to_all", "test_an_inbox_keeps_the_order"))
    @pytest.mark.parametrize("codec", ["json", "msgpack"])
    def test_gather_has_an_answer_of_each_server(self, bus: Bus, codec: str) -> None:
        """Each server runs the method once; its answer names the server, also if the method raises."""
        bus.serve("s1", "s2", "s3")
        # Where nobody counts the servers, more answers are waited for until the deadline.
        counts = Capability.INSPECT in bus.capabilities
        client = bus.client(transport=bus.new_transport(rpc_codec=codec), timeout=30 if counts else 5)
        for n in range(3):
            answers = client.gather({}, "each", key=f"{n}", fails="s2")
            found = {answer.server: answer for answer in answers}
            assert sorted(map(str, found)) == ["s1", "s2", "s3"]
            assert [found[name].value for name in ("s1", "s3")] == ["s1", "s3"]
            with pytest.raises(ValueError, match="on s2"):
                found["s2"].result()
            assert answers.answered == 3
            assert answers.expected == (3 if counts else None)
        assert sorted(entry.key for entry in bus.journal.entries("run")) == [f"{n}" for n in range(3) for _ in range(3)]

    @check("bus", since="0.1", builds_on=("test_a_fanout_goes_to_all", "test_an_inbox_keeps_the_order"))
    def test_gather_gives_answers_as_they_come(self, bus: Bus) -> None:
        """A slow server does not delay other answers, and a gather may be closed before the slow one answers."""
        bus.serve("s1", "s2", "s3")
        client = bus.client()
        gate = bus.gate()
        answers = client.gather({}, "each", key="k", waits="s2", gate=gate)
        assert sorted(str(next(answers).server) for _ in range(2)) == ["s1", "s3"]
        bus.journal.open_gate(gate)
        assert next(answers).value == "s2"
        gate = bus.gate()
        answers = client.gather({}, "each", key="other", waits="s2", gate=gate)
        assert sorted(str(next(answers).server) for _ in range(2)) == ["s1", "s3"]
        answers.close()
        assert list(answers) == []
        bus.journal.open_gate(gate)
        assert len(list(client.gather({}, "echo", value=1))) == 3

    @check("bus", since="0.1", builds_on=("test_a_fanout_goes_to_all", "test_exchanges_and_topics_are_apart"))
    def test_gather_asks_many_topics(self, bus: Bus) -> None:
        """Answers name their topic. A topic without servers adds no answer and no wait."""
        other = f"{bus.topic}-other"
        bus.serve("s1", "s2")
        bus.serve("s1", topic=other)
        topics = [bus.topic, other, f"{bus.topic}-nobody"]
        answers = bus.client().prepare(topics=topics).gather({}, "echo", value=1)
        assert sorted((answer.topic, answer.server, answer.value) for answer in answers) == [
            (bus.topic, "s1", 1),
            (bus.topic, "s2", 1),
            (other, "s1", 1),
        ]
        assert [answer.server for answer in bus.client().prepare(server="s2").gather({}, "echo")] == ["s2"]

    @check("bus", since="0.1")
    @pytest.mark.parametrize(("threads", "calls"), [(32, 100)])
    def test_each_of_many_callers_gets_its_own_answer(self, bus: Bus, threads: int, calls: int) -> None:
        """32 threads that share a client make 100 calls each, and each gets its own answers."""
        bus.serve("s1", "s2", "s3")
        client = bus.client()

        def caller(thread: int) -> int:
            for n in range(calls):
                value = f"{thread}-{n}"
                assert client.call({}, "echo", value=value) == value
            return thread

        assert gather([Task(caller, thread) for thread in range(threads)], 100) == list(range(threads))

    @check("bus", since="0.1", builds_on=("test_an_inbox_keeps_the_order",))
    def test_verbs_may_be_mixed(self, bus: Bus) -> None:
        """Calls, casts and streams of several threads over one transport do not disturb one another."""
        bus.serve("s1", "s2")
        client = bus.client()

        def caller(thread: int) -> None:
            for n in range(10):
                client.cast({}, "note", key=f"cast {thread} {n}")
                assert list(client.multicall({}, "count", n=250)) == list(range(250))
                assert client.call({}, "count", n=thread + 1) == thread

        gather([Task(caller, thread) for thread in range(8)])
        until(lambda: len([e for e in bus.journal.entries("run") if e.key.startswith("cast")]) == 80, "80 casts")

    @check("bus", since="0.1", builds_on=("test_an_inbox_keeps_the_order",))
    def test_arguments_that_cannot_be_encoded_are_refused(self, bus: Bus) -> None:
        """The error names the argument or context key, nothing is sent, and the client still works."""
        bus.serve()
        client = bus.client()
        recursive: list[Any] = []
        recursive.append(recursive)
        for verb in (client.call, client.cast, client.fanout_cast, client.multicall):
            for bad in (object(), {"x": [1, object()]}, recursive):
                with pytest.raises(SerializationError, match="'value'"):
                    verb({}, "echo", good=1, value=bad)
            with pytest.raises(SerializationError, match="'user'"):
                verb({"user": object()}, "echo")
        for method in (7, None, b"echo", ["echo"]):
            with pytest.raises(SerializationError, match="method"):
                client.call({}, method)  # type: ignore[arg-type]
        assert client.call({}, "echo", value=1) == 1
