"""One question to all servers of a topic: `RPCClient.gather`."""

from __future__ import annotations

import gc
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from msgbus import (
    Answer,
    CallCancelled,
    InvalidTarget,
    MessageUndeliverable,
    MessagingTimeout,
    NoOpSerializer,
    NoSuchMethod,
    RPCClient,
    SerializationError,
    Target,
    Transport,
    TransportUnavailable,
    current_request,
    get_rpc_client,
    get_rpc_server,
)
from msgbus.conformance.waiting import Task, until
from msgbus.deadline import current
from msgbus.drivers.base import Address, Capability, Delivery, Message
from msgbus.drivers.fake import get_bus
from msgbus.drivers.toolkit.loop import Loop
from msgbus.encoding import decode_request, encode_reply
from msgbus.message import LOST_AFTER, Reply
from msgbus.window import SendWindow
from tests.support import EVENT_TIMEOUT, VirtualClock, new_transport

TARGET = Target(topic="foo")


class Service:
    """What each server runs.

    Attributes:
        events: what has happened, in order.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.events: list[str] = []
        self.began = threading.Event()
        self.go_on = threading.Event()

    def name(self, _ctxt: object, end: str = "") -> str:
        return self._name + end

    def fail(self, _ctxt: object, name: str) -> str:
        if name == self._name:
            raise KeyError("no such thing")
        return self._name

    def wait(self, _ctxt: object, name: str) -> str:
        """On that server, wait until it is cancelled or may go on."""
        self.events.append("began")
        self.began.set()
        request = current_request()
        while name == self._name and not self.go_on.wait(0.005):
            if request.cancelled:
                self.events.append("cancelled")
                break
        return self._name

    def wait_all(self, ctxt: object) -> str:
        return self.wait(ctxt, self._name)

    def count(self, _ctxt: object, to: int) -> Iterator[int]:
        yield from range(to)

    def left(self, _ctxt: object) -> float:
        deadline = current.get()
        assert deadline is not None
        return deadline - Loop.now()

    def policy(self, _ctxt: object) -> str:
        return current_request().delivery


class Second:
    """What only one of them has."""

    def only_here(self, _ctxt: object) -> str:
        return "here"


class Servers:
    """Servers of the topic "foo", and a client of it, on one message system in memory.

    Attributes:
        transport: the client's.
        client: of the topic.
        services: by the server's name.
        served: the transport of the server that was started last.
    """

    served: Transport

    def __init__(self, cleanup: ExitStack, **overrides: Any) -> None:
        self._cleanup = cleanup
        self.transport = new_transport(**overrides)
        cleanup.callback(self.transport.cleanup)
        self.client = get_rpc_client(self.transport, TARGET, timeout=EVENT_TIMEOUT)
        self.services: dict[str, Service] = {}

    def start(
        self, *names: str, topic: str = "foo", more: list[object] | None = None, in_one_process: bool = False
    ) -> None:
        """Start servers with these names, each with a transport of its own, unless they are in one process."""
        for number, name in enumerate(names):
            if number == 0 or not in_one_process:
                self.served = new_transport(str(self.transport.url))
                self._cleanup.callback(self.served.cleanup)
            service = self.services[name] = Service(name)
            server = get_rpc_server(self.served, Target(topic=topic, server=name), [service, *(more or [])])
            server.start(EVENT_TIMEOUT)
            self._cleanup.callback(server.wait, EVENT_TIMEOUT)
            self._cleanup.callback(service.go_on.set)

    def peer(self, name: str, *replies: Reply) -> None:
        """A server that sends these replies to each question; of none, one that is frozen."""
        transport = new_transport(str(self.transport.url))
        self._cleanup.callback(transport.cleanup)

        def on_delivery(delivery: Delivery) -> None:
            request = decode_request(delivery.message.body, delivery.message.content_type)
            for number, reply in enumerate(replies):
                reply.call_id = request.call_id or ""
                content_type = delivery.message.content_type
                message = Message(encode_reply(reply, content_type), content_type, f"{name}-{number}", 60.0)
                transport.driver.send(Address("inbox", name=request.reply_to or ""), message, mandatory=False)

        addresses = [Address("topic", "msgbus", "foo"), Address("fanout", "msgbus", "foo", name)]
        transport.driver.subscribe(addresses, on_delivery, prefetch=100)


@pytest.fixture
def servers() -> Iterator[Servers]:
    """None are started yet."""
    with ExitStack() as cleanup:
        yield Servers(cleanup)


@pytest.fixture
def cleanup() -> Iterator[ExitStack]:
    """Ends what a test has started."""
    with ExitStack() as stack:
        yield stack


def shown(answers: list[Answer]) -> dict[str | None, Any]:
    """By server, the value or the class of the error."""
    return {each.server: each.value if each.error is None else type(each.error) for each in answers}


def test_each_server_answers_with_its_name(servers: Servers) -> None:
    """All answers come, each with its server and topic and how long it took; and it is known that nobody is missing."""
    servers.start("h1", "h2", "h3")
    answers = servers.client.gather({}, "name", end="!")
    found = list(answers)
    assert shown(found) == {"h1": "h1!", "h2": "h2!", "h3": "h3!"}
    assert all(answer.topic == "foo" and 0 < answer.seconds < EVENT_TIMEOUT for answer in found)
    assert (answers.answered, answers.expected) == (3, 3)
    assert list(answers) == []
    assert servers.transport.window.idle


def test_what_a_method_raises_is_in_its_answer(servers: Servers) -> None:
    """The others' answers come all the same. `result` raises it."""
    servers.start("h1", "h2")
    found = list(servers.client.gather({}, "fail", name="h2"))
    assert shown(found) == {"h1": "h1", "h2": KeyError}
    results = {answer.server: answer.result for answer in found}
    assert results["h1"]() == "h1"
    with pytest.raises(KeyError, match="no such thing"):
        results["h2"]()


def test_a_server_without_the_method_says_so(servers: Servers) -> None:
    """Its answer has the error, and counts."""
    servers.start("h1")
    servers.start("h2", more=[Second()])
    answers = servers.client.gather({}, "only_here")
    assert shown(list(answers)) == {"h1": NoSuchMethod, "h2": "here"}
    assert (answers.answered, answers.expected) == (2, 2)


def test_of_a_generator_the_answer_is_the_last_value(servers: Servers) -> None:
    """As with a call."""
    servers.start("h1", "h2")
    assert shown(list(servers.client.gather({}, "count", to=5))) == {"h1": 4, "h2": 4}


def test_answers_come_before_the_others_are_there(servers: Servers) -> None:
    """One that takes long holds up nobody."""
    servers.start("h1", "h2")
    answers = servers.client.gather({}, "wait", name="h2")
    assert next(answers).server == "h1"
    assert (answers.answered, answers.expected) == (1, 2)
    servers.services["h2"].go_on.set()
    assert [answer.server for answer in answers] == ["h2"]


def test_many_topics_are_asked_at_once(servers: Servers) -> None:
    """Each answer has its topic. Servers of different topics may share a name; a topic without servers adds none."""
    servers.start("h1", "h2")
    servers.start("h1", topic="bar")
    client = servers.client.prepare(topics=["foo", "bar", "nobody", "foo"])
    answers = client.gather({}, "name")
    assert sorted((answer.topic, answer.server) for answer in answers) == [("bar", "h1"), ("foo", "h1"), ("foo", "h2")]
    assert (answers.answered, answers.expected) == (3, 3)
    assert client.prepare(topics=None).call({}, "name") in ("h1", "h2")
    names: Any = (topic for topic in ("foo", "bar"))
    again = client.prepare(topics=names)
    assert [len(list(again.gather({}, "name"))) for _ in range(2)] == [len(list(client.gather({}, "name")))] * 2
    nothing = client.prepare(topics=[]).gather({}, "name")
    assert (list(nothing), nothing.answered, nothing.expected) == ([], 0, 0)


def test_a_name_in_the_target_asks_that_server(servers: Servers) -> None:
    """No other one runs it. If it is not there, that is an error."""
    servers.start("h1", "h2")
    answers = servers.client.prepare(server="h2").gather({}, "wait", name="none")
    assert shown(list(answers)) == {"h2": "h2"}
    assert answers.expected == 1
    assert servers.services["h1"].events == []
    with pytest.raises(MessageUndeliverable, match="h3"):
        list(servers.client.prepare(server="h3").gather({}, "name"))
    assert servers.transport.window.idle


def test_a_topic_without_servers_ends_at_once(servers: Servers) -> None:
    """There is no answer to wait for, and no error."""
    answers = servers.client.prepare(timeout=3600).gather({}, "name")
    assert list(answers) == []
    assert (answers.answered, answers.expected) == (0, 0)


def test_a_server_that_is_frozen_is_missing(servers: Servers) -> None:
    """At the deadline it has not answered, and is counted; where the driver cannot count, nobody knows."""
    servers.start("h1")
    servers.peer("h2")
    client = servers.client.prepare(timeout=0.5)
    answers = client.gather({}, "name")
    assert shown(list(answers)) == {"h1": "h1"}
    assert (answers.answered, answers.expected) == (1, 2)
    driver = servers.transport.driver
    driver.capabilities = driver.capabilities - {Capability.INSPECT}
    answers = client.gather({}, "name")
    assert shown(list(answers)) == {"h1": "h1"}
    assert (answers.answered, answers.expected) == (1, None)


def test_answers_that_came_before_the_deadline_are_given_after_it(servers: Servers) -> None:
    """A reader may be slow."""
    servers.start("h1")
    servers.peer("h2")
    answers = servers.client.prepare(timeout=0.5).gather({}, "name")
    until(lambda: answers.answered == 1, "an answer")
    threading.Event().wait(0.6)
    assert shown(list(answers)) == {"h1": "h1"}


def test_an_answer_that_comes_twice_is_given_once(servers: Servers) -> None:
    """It has the name of a server that has answered."""
    again = [Reply("", result=1, ending=True, extended=True, server="h1") for _ in range(2)]
    servers.peer("h1", *again)
    servers.start("h2")
    answers = servers.client.gather({}, "name")
    assert shown(list(answers)) == {"h1": 1, "h2": "h2"}
    assert answers.answered == 2


def test_a_stock_server_answers_without_a_name(servers: Servers) -> None:
    """Its answers count like others."""
    servers.peer("h1", Reply("", result=1), Reply("", ending=True, result=1))
    servers.peer("h2", Reply("", ending=True, result=1))
    answers = servers.client.gather({}, "name")
    assert [(answer.server, answer.value) for answer in answers] == [(None, 1), (None, 1)]
    assert (answers.answered, answers.expected) == (2, 2)


def test_an_answer_that_cannot_be_read_is_an_error_of_one_server(servers: Servers) -> None:
    """The other answers come."""
    servers.start("h2")
    unreadable = Reply("", result=1, ending=True, extended=True, server="h1", kind="nonsense")  # type: ignore[arg-type]
    servers.peer("h1", unreadable)
    assert shown(list(servers.client.gather({}, "name"))) == {"h2": "h2", None: SerializationError}


class Picky(NoOpSerializer):
    """Refuses one value."""

    def deserialize_entity(self, ctxt: Any, entity: Any) -> Any:
        if entity == "h2":
            raise ValueError("not this one")
        return f"<{entity}>"


def test_a_serializer_makes_the_values(servers: Servers) -> None:
    """What it raises concerns one answer."""
    servers.start("h1", "h2")
    client = get_rpc_client(servers.transport, TARGET, serializer=Picky(), timeout=EVENT_TIMEOUT)
    assert shown(list(client.gather({}, "name"))) == {"h1": "<h1>", "h2": ValueError}


@pytest.mark.parametrize("way", ["close", "with", "break", "deadline"])
def test_what_still_runs_is_cancelled_at_the_end(servers: Servers, way: str) -> None:
    """However the iteration ends early; and its place in the send window is given back."""
    servers.start("h1", "h2")
    answers = servers.client.prepare(timeout=1.0 if way == "deadline" else EVENT_TIMEOUT).gather({}, "wait", name="h2")
    assert not servers.transport.window.idle
    assert servers.services["h2"].began.wait(EVENT_TIMEOUT)
    if way == "close":
        answers.close()
        answers.close()
    elif way == "with":
        with answers:
            assert next(answers).server == "h1"
    elif way == "break":
        for _ in answers:
            break
        del answers
        gc.collect()
    else:
        assert [answer.server for answer in answers] == ["h1"]
    until(lambda: "cancelled" in servers.services["h2"].events, "the cancelling of what runs")
    until(lambda: servers.transport.window.idle, "a free place")
    assert not len(servers.transport.router)


@pytest.mark.parametrize("ended", [None, "h1", "h2", "h3"])
def test_what_servers_of_one_process_still_run_is_cancelled_too(servers: Servers, ended: str | None) -> None:
    """All of them get what is sent to their inbox, which is one. Some may have answered before."""
    servers.start("h1", "h2", "h3", in_one_process=True)
    services = servers.services
    answers = servers.client.gather({}, "wait_all")
    (pending,) = servers.transport.router.waiting()
    until(lambda: len(pending.running) == 3, "word of all that they run it")  # type: ignore[attr-defined]
    if ended is not None:
        services[ended].go_on.set()
        assert next(answers).server == ended
    answers.close()
    for name in {"h1", "h2", "h3"} - {ended}:
        until(lambda name=name: "cancelled" in services[name].events, f"the cancelling of {name}")  # type: ignore[misc]
    until(lambda: not servers.served.server_calls and not servers.served.further_calls, "that nothing is remembered")


def test_a_gather_takes_one_place_of_the_send_window(cleanup: ExitStack) -> None:
    """However many servers and topics it asks. Without a place nothing is sent; a ping needs none."""
    servers = Servers(cleanup, rpc_send_window=1)
    servers.start("h1", "h2")
    client = servers.client
    with client.prepare(topics=["foo", "bar"]).gather({}, "wait", name="h2") as answers:
        assert next(answers).server == "h1"
        with pytest.raises(MessagingTimeout, match="rpc_send_window"):
            client.prepare(timeout=0.5).gather({}, "name")
        assert len(client.ping(EVENT_TIMEOUT)) == 2
    assert shown(list(client.gather({}, "name"))) == {"h1": "h1", "h2": "h2"}


def test_the_inherited_deadline_holds(servers: Servers) -> None:
    """It bounds what the servers have. If it has passed, nothing is sent."""
    servers.start("h1")
    token = current.set(Loop.now() + 5.0)
    try:
        (answer,) = servers.client.prepare(timeout=3600).gather({}, "left")
        assert 0 < answer.value <= 5.0
        current.set(Loop.now())
        with pytest.raises(MessagingTimeout, match="nothing was sent"):
            servers.client.gather({}, "name")
    finally:
        current.reset(token)


def test_it_is_at_most_once_in_any_case(cleanup: ExitStack) -> None:
    """Also where the option says otherwise. A client that asks for at_least_once itself is refused."""
    servers = Servers(cleanup, rpc_delivery="at_least_once")
    servers.start("h1")
    (answer,) = servers.client.gather({}, "policy")
    assert answer.value == "at_most_once"
    with pytest.raises(ValueError, match="at_most_once"):
        servers.client.prepare(delivery="at_least_once").gather({}, "policy")


def test_what_is_not_allowed_is_refused_before_anything_is_sent(servers: Servers) -> None:
    """Nothing is left waiting."""
    servers.start("h1")
    client = servers.client
    with pytest.raises(TypeError, match="context is missing"):
        client.gather("name")
    with pytest.raises(SerializationError, match="'end'"):
        client.gather({}, "name", end=object())
    with pytest.raises(TypeError, match="a list of names"):
        client.prepare(topics="foo")
    with pytest.raises(InvalidTarget):
        client.prepare(topics=[""]).gather({}, "name")
    assert servers.transport.window.idle
    assert not len(servers.transport.router)


def test_a_transport_that_is_closed_ends_it(servers: Servers) -> None:
    """Whoever waits gets `CallCancelled`, and so does whoever begins later."""
    servers.start("h1")
    answers = servers.client.gather({}, "wait", name="h1")
    waiting = Task(list, answers)
    assert servers.services["h1"].began.wait(EVENT_TIMEOUT)
    servers.transport.cleanup()
    assert isinstance(waiting.error(EVENT_TIMEOUT), CallCancelled)
    with pytest.raises(CallCancelled):
        servers.client.gather({}, "name")


def test_a_message_system_that_is_away_is_an_error(servers: Servers) -> None:
    """It is raised from the iteration, after the answers of the topics that could be asked."""
    servers.start("h1")
    bus = get_bus(servers.transport.url)
    bus.fail_next(TransportUnavailable("away"))
    answers = servers.client.prepare(topics=["nobody", "foo"]).gather({}, "name")
    assert next(answers).server == "h1"
    with pytest.raises(TransportUnavailable, match="away"):
        next(answers)
    assert list(answers) == []
    assert servers.transport.window.idle


def test_a_known_server_that_cannot_be_reached_is_missing(servers: Servers) -> None:
    """That is no error: it is frozen, as far as anybody can know."""
    servers.start("h1")
    get_bus(servers.transport.url).fail_next(TransportUnavailable("away"))
    answers = servers.client.gather({}, "name")
    assert list(answers) == []
    assert (answers.answered, answers.expected) == (0, 1)


def test_a_server_that_dies_while_it_runs_is_named(cleanup: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer is `ServerLost` when it has been silent for 15 s, long before the deadline."""
    clock = VirtualClock(monkeypatch)
    servers = Servers(cleanup)
    servers.peer("h1", Reply("", "started", extended=True, server="h1", inbox="nowhere"))
    began = clock.seconds
    answers = servers.client.prepare(timeout=3600).gather({}, "name")
    (lost,) = answers
    assert (lost.server, type(lost.error).__name__) == ("h1", "ServerLost")
    assert LOST_AFTER <= clock.seconds - began < LOST_AFTER + 5
    assert (answers.answered, answers.expected) == (1, 1)


def test_many_threads_may_gather_over_one_client(servers: Servers) -> None:
    """Each gets the answers to its own question."""
    servers.start("h1", "h2", "h3")

    def ask(number: int, client: RPCClient = servers.client) -> None:
        for _ in range(10):
            found = shown(list(client.gather({}, "name", end=f" {number}")))
            assert found == {name: f"{name} {number}" for name in ("h1", "h2", "h3")}

    for task in [Task(ask, number) for number in range(8)]:
        task.result()


def test_its_text_says_how_many_have_answered(servers: Servers) -> None:
    """For logs and debuggers."""
    servers.start("h1")
    answers = servers.client.gather({}, "name")
    list(answers)
    assert repr(answers) == "<Gathering, 1 of 1 answered, closed>"


def test_a_gather_in_a_method_asks_the_servers_of_another_topic(servers: Servers) -> None:
    """A method may wait for answers like any other code."""

    class Asking:
        def __init__(self, transport: Transport) -> None:
            self._client = get_rpc_client(transport, TARGET, timeout=EVENT_TIMEOUT)

        def ask(self, ctxt: Any) -> list[Any]:
            return sorted(answer.result() for answer in self._client.gather(ctxt, "name"))

    servers.start("h1", "h2")
    servers.start("asking", topic="bar", more=[Asking(servers.transport)])
    assert servers.client.prepare(topic="bar").call({}, "ask") == ["h1", "h2"]


def test_one_that_waits_for_a_place_holds_up_nobody(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has the places waits for what the transport reads. So it takes the turn of driving it afterwards."""
    servers.start("h1")
    transport, loop = servers.transport, servers.transport.loop
    slot, take_turn = transport.slot, loop.take_turn
    order: list[str] = []

    def take_place(deadline: float, method: str, address: Address) -> SendWindow:
        order.append("place")
        return slot(deadline, method, address)

    def take() -> bool:
        order.append("turn")
        return take_turn()

    monkeypatch.setattr(transport, "slot", take_place)
    monkeypatch.setattr(loop, "take_turn", take)
    answers = servers.client.gather({}, "name")
    assert order[:2] == ["place", "turn"]
    assert len(list(answers)) == 1


def test_one_that_is_closed_keeps_no_answers(servers: Servers) -> None:
    """Also if its deadline is far away: until then the call is known, for a server that begins late."""

    class Large:
        def large(self, _ctxt: object) -> str:
            return "x" * 1_000_000

    servers.start("h1", "h2", more=[Large()])
    servers.peer("h3")
    tracemalloc.start()
    try:
        client = servers.client.prepare(timeout=3600)
        for answers in [client.gather({}, "large") for _ in range(5)]:
            until(lambda found=answers: found.answered == 2, "two answers")  # type: ignore[misc]
            answers.close()
            assert (list(answers), answers.answered) == ([], 2)
        until(lambda: tracemalloc.get_traced_memory()[0] < 3_000_000, "free memory")
    finally:
        tracemalloc.stop()


def test_another_thread_may_close_it(servers: Servers) -> None:
    """Who waits for an answer is woken, long before the deadline."""
    servers.start("h1")
    answers = servers.client.prepare(timeout=3600).gather({}, "wait", name="h1")
    waiting = Task(list, answers)
    assert servers.services["h1"].began.wait(EVENT_TIMEOUT)
    answers.close()
    assert waiting.result(EVENT_TIMEOUT) == []
    until(lambda: "cancelled" in servers.services["h1"].events, "the cancelling of what runs")
    assert servers.transport.window.idle
