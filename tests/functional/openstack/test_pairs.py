"""A client and a server of oslo.messaging understand each other, each over stock or over msgbus, in processes."""

from __future__ import annotations

import inspect
import os
import signal
import uuid
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from benchmarks.process import Process
from tests.functional.brokers.processes import poll, send_signal
from tests.openstack import buses
from tests.openstack.buses import MSGBUS, STOCK, Bus
from tests.openstack.figures import Pair, Report
from tests.openstack.peers import Notes, Peers

SECONDS = 30.0
"""The longest that a test waits for what comes at once, unless something is wrong."""
SERVERS = ("one", "two")
MANY = 32


def new_name(what: str) -> str:
    """A topic, or a pool, that nobody has used before: brokers keep queues."""
    return f"{what}-{uuid.uuid4().hex[:8]}"


class Service:
    """Two servers of one topic and a client, for a class of tests."""

    def __init__(self, peers: Peers, client: str, server: str) -> None:
        self._peers = peers
        self._driver = server
        self.topic = new_name("topic")
        self.notes = peers.new_notes()
        self.servers = {name: peers.serve(server, self.target(server=name), self.notes) for name in SERVERS}
        self.client = peers.start(client)

    def target(self, **more: str) -> dict[str, Any]:
        """The topic, in version 1.2."""
        return {"topic": self.topic, "version": "1.2", **more}

    def call(
        self, method: str, args: dict[str, Any] | None = None, *, to: dict[str, Any] | None = None, **how: Any
    ) -> Any:
        """What the client gets."""
        order = {"do": "call", "target": to or self.target(), "method": method, "args": args or {}}
        return self.client.ask(order | {"timeout": SECONDS} | how)

    def more(self, target: dict[str, Any]) -> tuple[Process, Notes]:
        """One more server, with notes of its own."""
        notes = self._peers.new_notes()
        return self._peers.serve(self._driver, target, notes), notes

    def listener(self) -> Process:
        """One more process, that is to listen to notifications."""
        return self._peers.start(self._driver)


class Pairs:
    """All checks, for a subclass that says what the pair is, and has a fixture `bus`.

    Attributes:
        client, server: the driver of each.
    """

    client: ClassVar[str] = MSGBUS
    server: ClassVar[str] = MSGBUS

    @pytest.fixture(scope="class")
    @classmethod
    def service(cls, bus: Bus, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
        with Peers(bus, tmp_path_factory.mktemp("p")) as peers:
            yield Service(peers, cls.client, cls.server)

    @pytest.fixture(autouse=True)
    def passed(self, request: pytest.FixtureRequest, bus: Bus, report_figures: Report) -> None:
        """What is recorded of a test that passes."""
        text = (inspect.getdoc(request.function) or "").partition("\n")[0]
        name = request.node.name.removeprefix("test_")
        report_figures(Pair(bus.name, self.client, self.server, name, text))

    def test_call(self, service: Service) -> None:
        """A call brings its arguments and its context to a server, and the result back."""
        value = {"a": [1, "ü", None, 2.5], "b": {"c": True}}
        answer = service.call("echo", {"value": value})["value"]
        assert answer["value"] == value
        assert answer["user"] == "u"
        assert answer["server"] in SERVERS

    def test_call_to_one_server(self, service: Service) -> None:
        """A call to a server by its name goes there."""
        for name in SERVERS:
            for _ in range(3):
                answer = service.call("echo", {"value": 1}, to=service.target(server=name))
                assert answer["value"]["server"] == name

    def test_many_calls_at_once(self, service: Service) -> None:
        """Of 32 calls at the same time each gets its own answer."""
        order = {"do": "call_many", "target": service.target(), "count": MANY, "timeout": SECONDS}
        assert service.client.ask(order) == MANY

    def test_large_values(self, service: Service) -> None:
        """A call with a megabyte each way."""
        value = "x" * 1_000_000
        assert service.call("echo", {"value": value})["value"]["value"] == value

    def test_cast(self, service: Service) -> None:
        """A cast is run by one server, and one to a server by its name there."""
        service.client.ask({"do": "cast", "target": service.target(), "text": "cast"})
        service.client.ask({"do": "cast", "target": service.target(server="two"), "text": "cast to two"})
        poll(lambda: len(service.notes.servers_of("cast")) == 1, SECONDS, "the cast")
        poll(lambda: service.notes.servers_of("cast to two") == ["two"], SECONDS, "the cast to two")
        # By then a second run of the first would have been written down as well.
        assert len(service.notes.servers_of("cast")) == 1

    def test_fanout(self, service: Service) -> None:
        """A fanout cast is run by every server."""
        service.client.ask({"do": "cast", "target": service.target(), "text": "fanout", "fanout": True})
        poll(lambda: service.notes.servers_of("fanout") == list(SERVERS), SECONDS, "the fanout on both servers")

    def test_known_exception(self, service: Service) -> None:
        """An exception of a module that the client allows is raised as its own class, with its arguments."""
        raised = service.call("raise_known")
        assert raised["raised"] == "OutOfPaper_Remote"
        assert raised["args"] == ["the printer in the hall", 3]

    def test_builtin_exception(self, service: Service) -> None:
        """One of Python's own is raised as that, with its text."""
        raised = service.call("raise_builtin")
        assert (raised["raised"], raised["text"]) == ("ValueError", "no such page")

    def test_unknown_exception(self, service: Service) -> None:
        """One that the client does not allow is a RemoteError that names it."""
        raised = service.call("raise_unknown")
        assert (raised["raised"], raised["remote"]) == ("RemoteError", "InvalidOperation")

    def test_unknown_method(self, service: Service) -> None:
        """A method that there is not is a RemoteError of NoSuchMethod."""
        raised = service.call("missing")
        assert (raised["raised"], raised["remote"]) == ("RemoteError", "NoSuchMethod")

    def test_namespaces_and_versions(self, service: Service) -> None:
        """A call finds the endpoint of its namespace and version, and is refused if there is none."""
        admin = {"topic": service.topic, "namespace": "admin"}
        assert service.call("where", to=admin | {"version": "2.0"}) == {"value": "admin 2.1"}
        for to in (admin | {"version": "2.2"}, service.target() | {"version": "1.4"}):
            raised = service.call("where", to=to)
            assert (raised["raised"], raised["remote"]) == ("RemoteError", "UnsupportedVersion")

    def test_timeout(self, service: Service) -> None:
        """A call that takes longer than its timeout raises MessagingTimeout, and the next is answered."""
        raised = service.call("echo", {"value": 1, "seconds": 4}, timeout=1)
        assert raised["raised"] == "MessagingTimeout"
        assert service.call("echo", {"value": 2})["value"]["value"] == 2

    def test_nobody_listens(self, service: Service) -> None:
        """A call to a topic without servers times out; with at_least_once it is undeliverable at once."""
        to = {"topic": new_name("nobody"), "version": "1.2"}
        assert service.call("echo", {"value": 1}, to=to, timeout=1)["raised"] == "MessagingTimeout"
        assert service.call("echo", {"value": 1}, to=to, at_least_once=True)["raised"] == "MessageUndeliverable"

    def test_exchange(self, service: Service) -> None:
        """A topic of another exchange is found there."""
        # Not the topic of the others: stock names a queue after its topic alone.
        topic, exchange = new_name("topic"), new_name("exchange")
        target = {"topic": topic, "version": "1.2", "exchange": exchange}
        _, notes = service.more(target | {"server": "three"})
        assert service.call("echo", {"value": 1}, to=target)["value"]["server"] == "three"
        service.client.ask({"do": "cast", "target": target, "text": "elsewhere"})
        poll(lambda: notes.servers_of("elsewhere") == ["three"], SECONDS, "the cast to the other exchange")

    def test_exchanges_are_apart(self, service: Service) -> None:
        """A topic of another exchange is not found in the usual one."""
        topic = new_name("topic")
        service.more({"topic": topic, "version": "1.2", "server": "three", "exchange": new_name("exchange")})
        answer = service.call("echo", {"value": 1}, to={"topic": topic, "version": "1.2"}, timeout=1)
        assert answer.get("raised") == "MessagingTimeout"

    def test_call_monitor(self, service: Service) -> None:
        """A call that takes longer than its call_monitor_timeout is answered while the server shows life."""
        answer = service.call("echo", {"value": 1, "seconds": 5}, call_monitor_timeout=2, timeout=SECONDS)
        assert answer["value"]["value"] == 1

    def test_call_monitor_of_a_frozen_server(self, service: Service) -> None:
        """It raises MessagingTimeout, long before its timeout, once the server shows no more life."""
        target = {"topic": new_name("frozen"), "version": "1.2"}
        server, notes = service.more(target | {"server": "frozen"})
        order = {"do": "call", "target": target, "method": "hang", "args": {"text": "begun"}, "timeout": 600}
        service.client.tell(order | {"call_monitor_timeout": 2})
        poll(lambda: notes.servers_of("begun"), SECONDS, "the server to begin")
        send_signal(server.pid, signal.SIGSTOP)
        try:
            assert service.client.answer(SECONDS)["raised"] == "MessagingTimeout"
        finally:
            os.kill(server.pid, signal.SIGKILL)

    @pytest.mark.parametrize("driver", ["messaging", "messagingv2"])
    def test_notifications(self, service: Service, driver: str) -> None:
        """Notifications reach a listener with publisher, priority, payload and context, in both formats."""
        topic, listener = new_name("notified"), service.listener()
        listener.ask({"do": "listen", "topics": [topic]})
        for priority in ("info", "error"):
            notify(service.client, driver, topic, priority, "event", {"n": [1, "ü"]})
        expected = [[priority, "publisher", "event", {"n": [1, "ü"]}, "u"] for priority in ("error", "info")]
        wait_for_events(listener, 0, expected)

    @pytest.mark.parametrize("driver", ["messaging", "messagingv2"])
    def test_notification_pools(self, service: Service, driver: str) -> None:
        """Each pool of listeners gets every notification once, and so do the listeners without a pool."""
        topic, listener = new_name("pooled"), service.listener()
        pools = [None, new_name("pool"), new_name("pool")]
        numbers = [listener.ask({"do": "listen", "topics": [topic], "pool": pool}) for pool in (*pools, pools[1])]
        events = [f"event-{number}" for number in range(10)]
        for event in events:
            notify(service.client, driver, topic, "info", event, 1)
        expected = [["info", "publisher", event, 1, "u"] for event in events]
        for number in (numbers[0], numbers[2]):
            wait_for_events(listener, number, expected)
        wait_for_events(listener, [numbers[1], numbers[3]], expected)  # two in one pool: together

    @pytest.mark.parametrize("driver", ["messaging", "messagingv2"])
    def test_notification_requeue(self, service: Service, driver: str) -> None:
        """A notification that a listener gives back comes again, until it is handled."""
        topic, listener = new_name("requeued"), service.listener()
        listener.ask({"do": "listen", "topics": [topic], "refusals": 2})
        notify(service.client, driver, topic, "info", "event", 1)
        wait_for_events(listener, 0, [["info", "publisher", "event", 1, "u"]] * 3)


class Kept:
    """One more check, where there is a broker that keeps what nobody takes."""

    def test_notification_before_its_listener(self, service: Service) -> None:
        """A notification waits for a listener that comes later."""
        topic = new_name("early")
        notify(service.client, "messagingv2", topic, "info", "early", 1)
        listener = service.listener()
        listener.ask({"do": "listen", "topics": [topic]})
        wait_for_events(listener, 0, [["info", "publisher", "early", 1, "u"]])


def notify(client: Process, driver: str, topic: str, priority: str, event: str, payload: Any) -> None:
    """Have a notification sent."""
    order = {"do": "notify", "driver": driver, "topic": topic, "priority": priority}
    client.ask(order | {"event": event, "payload": payload})


def wait_for_events(listener: Process, numbers: int | list[int], expected: list[list[Any]]) -> None:
    """Wait until listeners have, together, taken in what is expected; then they have nothing else."""
    found: list[list[Any]] = []

    def have_all() -> bool:
        chosen = [numbers] if isinstance(numbers, int) else numbers
        found[:] = [event for number in chosen for event in listener.ask({"do": "events", "listener": number})]
        return len(found) >= len(expected)

    try:
        poll(have_all, SECONDS, f"{len(expected)} notifications")
    except TimeoutError as error:
        raise TimeoutError(f"{error}; there were {found}") from None
    assert sorted(found) == sorted(expected)


class RabbitMQ310(Kept, Pairs):
    """On the oldest version."""

    @pytest.fixture(scope="class")
    @classmethod
    def bus(cls, rabbitmq_310: Any) -> Bus:
        return buses.rabbitmq(rabbitmq_310)


class RabbitMQ43(Kept, Pairs):
    """On the newest version."""

    @pytest.fixture(scope="class")
    @classmethod
    def bus(cls, rabbitmq_43: Any) -> Bus:
        return buses.rabbitmq(rabbitmq_43)


@pytest.mark.openstack
class TestStockAndStock310(RabbitMQ310):
    """What everything else is compared with."""

    client = server = STOCK


@pytest.mark.openstack
class TestStockAndMsgbus310(RabbitMQ310):
    """A service that has not changed calls one that has."""

    client = STOCK


@pytest.mark.openstack
class TestMsgbusAndStock310(RabbitMQ310):
    """The other way round."""

    server = STOCK


@pytest.mark.openstack
class TestMsgbusAndMsgbus310(RabbitMQ310):
    """Both have changed."""


@pytest.mark.openstack
class TestStockAndStock43(RabbitMQ43):
    """What everything else is compared with."""

    client = server = STOCK


class TestStockAndMsgbus43(RabbitMQ43):
    """A service that has not changed calls one that has."""

    client = STOCK


class TestMsgbusAndStock43(RabbitMQ43):
    """The other way round."""

    server = STOCK


class TestMsgbusAndMsgbus43(RabbitMQ43):
    """Both have changed."""


class TestQpid(Kept, Pairs):
    """Over AMQP 1.0."""

    @pytest.fixture(scope="class")
    @classmethod
    def bus(cls, qpid: Any) -> Bus:
        return buses.qpid(qpid)


class TestZmq(Pairs):
    """Without a broker."""

    @pytest.fixture(scope="class")
    @classmethod
    def bus(cls, tmp_path_factory: pytest.TempPathFactory) -> Bus:
        return buses.zmq(tmp_path_factory.mktemp("z"))
