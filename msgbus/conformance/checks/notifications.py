"""Notifications: who gets them, what comes again, what is kept, and batches."""

from __future__ import annotations

from collections import Counter
from typing import Any

from msgbus.conformance.bus import Bus
from msgbus.conformance.check import check
from msgbus.conformance.checks.wire import envelope, raw
from msgbus.conformance.notified import LEVELS
from msgbus.conformance.waiting import until
from msgbus.drivers.base import Address, Capability

TRIES = 5
"""How often one that always comes again may have come while others were served: it pauses 1, 2, 4 and 8 seconds."""


class NotificationChecks:
    """Of `Notifier`, and of listeners."""

    def _send(self, bus: Bus, *keys: str, level: str = "info", event_type: str = "note", **payload: object) -> None:
        notifier = bus.notifier()
        for key in keys:
            getattr(notifier, level)({}, event_type, {"key": key, **payload})

    def _batches(self, bus: Bus, count: int) -> list[list[str]]:
        """The keys in each batch, of the level info, once there are so many keys in all."""

        def batches() -> list[list[str]]:
            found = [entry.key.removeprefix("info: ").split() for entry in bus.journal.entries("batch")]
            return found if sum(map(len, found)) >= count else []

        return until(batches, f"batches with {count} notifications")

    @check("bus", since="0.1")
    def test_a_notification_goes_to_one_of_several_listeners(self, bus: Bus) -> None:
        """Of 60 notifications each is handled once, by one of three listeners."""
        bus.listen("l1", "l2", "l3")
        keys = [f"k{n}" for n in range(60)]
        self._send(bus, *keys)
        for key in keys:
            bus.ran(key)
        assert Counter(entry.key for entry in bus.journal.entries("run")) == dict.fromkeys(keys, 1)

    @check("bus", since="0.1")
    def test_a_notification_reaches_the_method_of_its_level(self, bus: Bus) -> None:
        """A listener gets the levels that it has methods for, and takes no others away from other listeners."""
        bus.listen("all")
        bus.listen("errors", levels=["error"], pool="errors")
        for level in LEVELS:
            self._send(bus, f"k-{level}", level=level)
        for level in LEVELS:
            bus.saw(level, f"k-{level}")
        until(lambda: [e for e in bus.journal.entries("error") if e.server == "errors"], "the pool has the error")
        assert {e.key for e in bus.journal.entries("run") if e.server == "errors"} == {"k-error"}
        assert len([e for e in bus.journal.entries("run") if e.server == "all"]) == len(LEVELS)

    @check("bus", since="0.1", builds_on=("test_each_pool_gets_a_copy",))
    def test_each_pool_gets_each_notification(self, bus: Bus) -> None:
        """A notification goes to one listener of each pool, and to one of the listeners that are in no pool."""
        bus.listen("free")
        bus.listen("a1", "a2", pool="a")
        bus.listen("b1", pool="b")
        keys = [f"k{n}" for n in range(20)]
        self._send(bus, *keys)
        for key in keys:
            assert sorted(server[0] for server in bus.ran(key, 3)) == ["a", "b", "f"]
        assert len(bus.journal.entries("run")) == 3 * len(keys)

    @check("bus", since="0.1", needs=(Capability.REQUEUE,), builds_on=("test_reject_with_requeue_delivers_it_again",))
    def test_a_requeued_notification_comes_again(self, bus: Bus) -> None:
        """A notification for which an endpoint returns REQUEUE twice is delivered three times, and not again."""
        bus.listen("l1", "l2", allow_requeue=True)
        self._send(bus, "k", event_type="requeue", times=2)
        bus.ran("k", 3)
        self._send(bus, "next")
        bus.ran("next")
        assert len(bus.journal.entries("run", "k")) == 3

    @check("bus", since="0.1", needs=(Capability.REQUEUE,), builds_on=("test_reject_with_requeue_delivers_it_again",))
    def test_one_that_always_comes_again_keeps_no_others_waiting(self, bus: Bus) -> None:
        """A requeued notification pauses before it is delivered again, and 100 others are handled meanwhile."""
        bus.listen(allow_requeue=True)
        self._send(bus, "again", event_type="requeue", times=1_000_000)
        bus.ran("again")
        keys = [f"k{n}" for n in range(100)]
        self._send(bus, *keys)
        for key in keys:
            bus.ran(key)
        assert len(bus.journal.entries("run", "again")) <= TRIES, "it came again without a pause"

    @check("bus", since="0.1")
    def test_a_notification_that_raises_is_handled_once(self, bus: Bus) -> None:
        """Without ``allow_requeue`` a failed notification is not delivered again, and the next one is handled."""
        bus.listen()
        self._send(bus, "bad", event_type="fail")
        self._send(bus, "k")
        bus.ran("k")
        assert len(bus.ran("bad")) == 1

    @check("bus", since="0.1")
    def test_a_batch_is_complete_with_its_size(self, bus: Bus) -> None:
        """Ten notifications come as two batches of five."""
        bus.listen(batch_size=5)
        keys = [f"k{n}" for n in range(10)]
        self._send(bus, *keys)
        found = self._batches(bus, 10)
        assert [len(batch) for batch in found] == [5, 5]
        assert sorted(key for batch in found for key in batch) == keys

    @check("bus", since="0.1")
    def test_a_batch_is_complete_after_its_time(self, bus: Bus) -> None:
        """Three notifications arrive together a second after the first, although the batch has room for a hundred."""
        bus.listen(batch_size=100, batch_timeout=1.0)
        self._send(bus, "k0", "k1", "k2")
        found = self._batches(bus, 3)
        assert sorted(key for batch in found for key in batch) == ["k0", "k1", "k2"]
        assert len(found) < 3, "each came by itself"

    @check("bus", since="0.1", processes=True, builds_on=("test_closing_a_driver_gives_back_open_deliveries",))
    def test_what_a_killed_listener_had_comes_to_another(self, bus: Bus) -> None:
        """A notification whose listener is killed while it handles it is handled by another one."""
        (first,) = bus.listen("l1")
        gate = bus.gate()
        self._send(bus, "k", event_type="hold", gate=gate)
        assert bus.ran("k") == ["l1"]
        bus.listen("l2")
        bus.kill(first)
        bus.journal.open_gate(gate)
        assert bus.ran("k", 2, seconds=60) == ["l1", "l2"]

    @check("bus", since="0.1", needs=(Capability.STORAGE,))
    def test_an_unread_notification_is_kept(self, bus: Bus) -> None:
        """If nobody has ever listened, the first listener gets what was sent before."""
        self._send(bus, "k0", "k1")
        bus.listen()
        bus.ran("k0")
        bus.ran("k1")

    @check("bus", since="0.1", lacks=(Capability.STORAGE,))
    def test_an_unread_notification_is_dropped(self, bus: Bus) -> None:
        """If nobody listens, the sender gets no error, and the first listener gets what is sent from then on."""
        self._send(bus, "k0")
        bus.listen()
        self._send(bus, "k1")
        bus.ran("k1")
        assert bus.journal.entries("run", "k0") == []

    @check("bus", since="0.1")
    def test_what_is_no_notification_is_dropped(self, bus: Bus) -> None:
        """A listener that gets such messages goes on."""
        bus.listen()
        address = Address("topic", "msgbus", f"{bus.topic}.info")
        odd: list[Any] = [
            None,
            7,
            "text",
            [],
            {},
            {"priority": "LOUD", "event_type": "note"},
            {"priority": "INFO", "event_type": 1},
        ]
        messages = [raw(b"\xff"), raw(b"", "text/plain"), raw(b"{}"), *(raw(envelope(one)) for one in odd)]
        for message in messages:
            bus.driver.send(address, message, mandatory=True).result(15)
        self._send(bus, "k")
        bus.ran("k")
        assert len(bus.journal.entries("run")) == 1
