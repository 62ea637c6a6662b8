"""The three patterns: any server of a topic, a named one, or all; and that no other gets the request."""

from __future__ import annotations

from collections import Counter

import pytest

from msgbus import MessageUndeliverable
from msgbus.conformance.bus import Bus
from msgbus.conformance.check import check
from msgbus.conformance.waiting import Task, gather, until


class PatternChecks:
    """Of which servers run a request."""

    @check("bus", since="0.1", builds_on=("test_idle_subscribers_share_a_topic",))
    def test_idle_servers_share_the_calls(self, bus: Bus) -> None:
        """Of 300 calls, each of three idle servers runs at least 30, in one of five attempts; each call runs once."""
        bus.serve("s1", "s2", "s3")
        client = bus.client()
        shares: list[Counter[str]] = []
        # The client may still be connecting to one of them; and they are processes: where other things run too, one of
        # them is not always as idle as the others.
        while len(shares) < 5 and not (shares and min(shares[-1][name] for name in ("s1", "s2", "s3")) >= 30):
            keys = [f"{len(shares)}/{n}" for n in range(300)]
            shares.append(Counter(client.call({}, "note", key=key) for key in keys))
            runs = Counter(entry.key for entry in bus.journal.entries("run"))
            assert all(runs[key] == 1 for key in keys)
        assert set(shares[-1]) == {"s1", "s2", "s3"}
        assert min(shares[-1].values()) >= 30, (
            f"idle servers have to share the work about equally; of 300 calls each time they ran {shares}"
        )

    @check("bus", since="0.1")
    def test_a_call_to_one_server_reaches_that_one(self, bus: Bus) -> None:
        """With a server in the target, no other server runs the call."""
        bus.serve("s1", "s2", "s3")
        client = bus.client()
        for name in ("s2", "s3", "s1"):
            assert [client.prepare(server=name).call({}, "note", key="k") for _ in range(10)] == [name] * 10
        client.prepare(server="s2").cast({}, "note", key="cast")
        assert bus.ran("cast") == ["s2"]

    @check("bus", since="0.1", builds_on=("test_a_fanout_goes_to_all",))
    def test_a_fanout_reaches_every_server_once(self, bus: Bus) -> None:
        """`fanout_cast`, and `cast` with fanout in the target, are run once by each server."""
        bus.serve("s1", "s2", "s3")
        client = bus.client()
        for n in range(10):
            client.fanout_cast({}, "note", key=f"a{n}")
            client.prepare(fanout=True).cast({}, "note", key=f"b{n}")
        for n in range(10):
            for letter in "ab":
                assert sorted(bus.ran(f"{letter}{n}", 3)) == ["s1", "s2", "s3"]
        assert len(bus.journal.entries("run")) == 60

    @check(
        "bus",
        since="0.1",
        builds_on=(
            "test_a_fanout_goes_to_all",
            "test_mandatory_to_nobody_fails_at_once",
            "test_exchanges_and_topics_are_apart",
        ),
    )
    def test_exchanges_are_apart(self, bus: Bus) -> None:
        """The same topic in another exchange is another service, for each of the patterns."""
        bus.serve("here")
        bus.serve("there", exchange="conformance-2")
        client = bus.client()
        other = client.prepare(exchange="conformance-2")
        assert {client.call({}, "note", key="k") for _ in range(10)} == {"here"}
        assert {other.call({}, "note", key="k") for _ in range(10)} == {"there"}
        with pytest.raises(MessageUndeliverable):
            other.prepare(server="here").call({}, "note", key="k")
        client.fanout_cast({}, "note", key="all")
        other.fanout_cast({}, "note", key="all of the other")
        assert bus.ran("all") == ["here"]
        assert bus.ran("all of the other") == ["there"]

    @check("bus", since="0.1", builds_on=("test_exchanges_and_topics_are_apart",))
    def test_topics_are_apart(self, bus: Bus) -> None:
        """A topic whose name begins with another's, or looks like another's server, is another service."""
        topics = [bus.topic, f"{bus.topic}.s1", f"{bus.topic}/s1", f"{bus.topic}_fanout", f"{bus.topic}!"]
        for n, topic in enumerate(topics):
            bus.serve("s1", topic=topic)
            bus.client(topic).prepare(server="s1").cast({}, "note", key=f"server {n}")
            bus.client(topic).cast({}, "note", key=f"topic {n}")
            bus.client(topic).fanout_cast({}, "note", key=f"fanout {n}")
        for n, _ in enumerate(topics):
            for kind in ("server", "topic", "fanout"):
                bus.ran(f"{kind} {n}")
        assert len(bus.journal.entries("run")) == 3 * len(topics)

    @check("bus", since="0.1")
    @pytest.mark.parametrize(
        "name", ["with/slash", "a#b", "a*b.c", "two words", "Größe 漢字 🐇", "%2F", "!fanout", "'\"`$;&|<>", "x" * 75]
    )
    def test_names_may_hold_anything(self, bus: Bus, name: str) -> None:
        """The patterns work whatever characters the names of topic and server have."""
        topic = bus.topic[-12:] + name if len(name) < 60 else name
        bus.serve(name, topic=topic)
        client = bus.client(topic)
        assert client.call({}, "echo", value=1) == 1
        assert client.prepare(server=name).call({}, "note", key="k") == name
        client.fanout_cast({}, "note", key="all")
        assert bus.ran("all") == [name]

    @check(
        "bus",
        since="0.1",
        builds_on=("test_mandatory_to_nobody_fails_at_once", "test_an_inbox_keeps_the_order"),
    )
    def test_a_topic_may_name_a_server(self, bus: Bus) -> None:
        """If nobody serves the topic ``foo.host1``, it stands for the server ``host1`` of the topic ``foo``.

        Without such a server it is `MessageUndeliverable` at once.
        """
        bus.serve("s1", "s2.example.org")
        for delivery in ("at_most_once", "at_least_once"):
            for name in ("s1", "s2.example.org"):
                key = f"{name} {delivery}"
                client = bus.client(f"{bus.topic}.{name}", delivery=delivery)
                assert client.call({}, "note", key=f"call {key}") == name
                client.cast({}, "note", key=f"cast {key}")
                assert bus.ran(f"cast {key}") == [name]
                assert list(client.multicall({}, "count", n=3)) == [0, 1, 2]
            nobody = Task(bus.client(f"{bus.topic}.nobody", delivery=delivery, timeout=60).call, {}, "echo")
            error = nobody.error(20)
            assert isinstance(error, MessageUndeliverable), error
            assert f"{bus.topic}.nobody" in str(error)
            assert "server 'nobody'" in str(error)
        assert len(bus.journal.entries("run")) == 12

    @check("bus", since="0.1", builds_on=("test_prefetch_bounds_open_deliveries",))
    def test_a_busy_server_holds_nothing_that_an_idle_one_could_run(self, bus: Bus) -> None:
        """While one server is busy and its prefetch is used up, an idle server runs all other requests."""
        bus.serve("s1", "s2", executor_thread_pool_size=1, rpc_prefetch=1, rpc_delivery="at_least_once")
        gate = bus.gate()
        client = bus.client(delivery="at_least_once")
        stuck = Task(client.prepare(server="s1").call, {}, "hold", key="stuck", gate=gate)
        bus.ran("stuck")
        # The prefetch is for each address: the busy server may hold one request of the address "topic".
        calls = [Task(client.call, {}, "note", key=f"k{n}") for n in range(20)]
        until(lambda: sum(call.done for call in calls) >= 19, "19 of 20 calls are answered by the idle server")
        assert not stuck.done, "the call that holds server s1 has ended already"
        bus.journal.open_gate(gate)
        assert stuck.result() == "s1"
        names = gather(calls)
        assert names.count("s2") >= 19, f"a busy server got what an idle one could run: {Counter(names)}"

    @check("bus", since="0.1", builds_on=("test_mandatory_to_nobody_fails_at_once",))
    def test_a_second_server_of_the_process_serves_too(self, bus: Bus) -> None:
        """A client can call several services over one transport, including one that is started later."""
        bus.serve("s1")
        client = bus.client()
        assert client.call({}, "note", key="k") == "s1"
        later = bus.client(f"{bus.topic}-later")
        with pytest.raises(MessageUndeliverable):
            later.call({}, "note", key="k")
        bus.serve("s9", topic=f"{bus.topic}-later")
        assert later.call({}, "note", key="k") == "s9"
        assert client.call({}, "note", key="k") == "s1"
