"""The delivery policies, with deliveries that the test hands to a `Processor` itself; see also test_server.py."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from msgbus import MessageTooLarge, RPCDispatcher, Transport, TransportUnavailable
from msgbus.conformance.waiting import until
from msgbus.current import running
from msgbus.drivers.base import Address, Delivery, Message, Sent
from msgbus.drivers.fake import get_bus
from msgbus.drivers.toolkit.futures import LightFuture, fail_inherited
from msgbus.drivers.toolkit.loop import Loop
from msgbus.encoding import decode_inbox_frame, encode_request
from msgbus.message import JSON, MSGPACK, DeadLetter, Hints, Reply, Request
from msgbus.processing import Processor
from msgbus.server_call import ServerCall, time_left
from tests.support import EVENT_TIMEOUT, new_transport

TOPIC = Address("topic", "msgbus", "foo")


class Handed(Delivery):
    """A delivery that notes what becomes of it."""

    __slots__ = ("alive", "outcome")

    def __init__(
        self,
        request: Request,
        *,
        redelivered: bool = False,
        alive: bool = True,
        ttl: float | None = None,
        content_type: str = JSON,
    ):
        message = Message(encode_request(request, content_type), content_type, request.unique_id, ttl)
        super().__init__(TOPIC, message, redelivered, None)
        self.alive = alive
        self.outcome: str | None = None

    def accept(self) -> bool:
        self.outcome = self.outcome or "accepted"
        return self.alive

    def reject(self, requeue: bool) -> None:
        self.outcome = self.outcome or ("requeued" if requeue else "dropped")


class Bench:
    """A processor, a client's inbox, and an endpoint."""

    def __init__(self, **options: Any) -> None:
        self.transport: Transport = new_transport(rpc_reply_grace=0.001, **options)
        self.frames: list[Reply] = []
        self.content_types: list[str] = []
        self.inbox = self.transport.driver.open_inbox(self._on_frame)
        self.ran: list[Any] = []
        self.hook: Callable[[], object] = lambda: None
        dispatcher = RPCDispatcher([self])
        self.processor = Processor(self.transport, "h1", dispatcher, None)

    def _on_frame(self, delivery: Delivery) -> None:
        frame = decode_inbox_frame(delivery.message.body, delivery.message.content_type)
        assert isinstance(frame, Reply)
        self.frames.append(frame)
        self.content_types.append(delivery.message.content_type)

    def note(self, ctxt: object, value: Any = None) -> Any:
        self.ran.append(value)
        self.hook()
        return value

    def items(self, ctxt: object) -> Iterator[int]:
        self.hook()
        yield 1

    def request(self, policy: str, *, call: bool = True, unique_id: str = "id", **args: Any) -> Request:
        request = Request("note", args, unique_id, hints=Hints(ttl=60.0, policy=policy))
        if call:
            request.call_id, request.reply_to = unique_id, self.inbox.address.name
        return request

    def kinds(self) -> list[str]:
        return [frame.kind for frame in self.frames]


@pytest.fixture
def bench() -> Iterator[Bench]:
    """All that a test needs, with nothing unfinished in the end."""
    bench = Bench()
    bench.transport.inbox(Loop.now() + 10)  # as a server does before it takes requests
    yield bench
    assert bench.processor.wait(0) == 0
    bench.transport.cleanup()


@pytest.mark.parametrize("call", [True, False], ids=["call", "cast"])
@pytest.mark.parametrize(("policy", "while_it_runs"), [("at_most_once", "accepted"), ("at_least_once", None)])
def test_a_delivery_is_accepted_when_its_policy_says(
    bench: Bench, policy: str, while_it_runs: str | None, call: bool
) -> None:
    """Under at_most_once a delivery is accepted before it runs, under at_least_once after."""
    delivery = Handed(bench.request(policy, call=call))
    seen: list[str | None] = []
    bench.hook = lambda: seen.append(delivery.outcome)
    bench.processor.process(delivery)
    assert seen == [while_it_runs]
    assert delivery.outcome == "accepted"
    assert len(bench.frames) == call


@pytest.mark.parametrize(("policy", "while_it_runs"), [("at_most_once", True), ("at_least_once", False)])
def test_a_call_counts_as_accepted_once_it_is(bench: Bench, policy: str, while_it_runs: bool) -> None:
    """Not before its delivery was accepted, under either policy."""
    seen: list[bool] = []

    def note() -> None:
        call = running.get()
        assert isinstance(call, ServerCall)
        seen.append(call.accepted)

    class Noting(Handed):
        __slots__ = ()

        def accept(self) -> bool:
            note()
            return super().accept()

    bench.hook = note
    bench.processor.process(Noting(bench.request(policy)))
    assert seen == ([False, while_it_runs] if while_it_runs else [while_it_runs, False])


@pytest.mark.parametrize(
    ("policy", "runs", "frames"), [("at_most_once", 0, ["declined"]), ("at_least_once", 1, ["reply"])]
)
def test_a_redelivered_call_is_declined_or_run_as_its_policy_says(
    bench: Bench, policy: str, runs: int, frames: list[str]
) -> None:
    """What may have run before is declined under at_most_once, and run under at_least_once; it is accepted."""
    delivery = Handed(bench.request(policy), redelivered=True)
    bench.processor.process(delivery)
    assert (len(bench.ran), bench.kinds(), delivery.outcome) == (runs, frames, "accepted")


@pytest.mark.parametrize("call", [True, False], ids=["call", "cast"])
def test_a_request_that_cannot_be_accepted_is_not_run(bench: Bench, call: bool) -> None:
    """Under at_most_once a request that can no more be accepted is not run: it will come again elsewhere."""
    bench.processor.process(Handed(bench.request("at_most_once", call=call), alive=False))
    assert not bench.ran
    assert bench.kinds() == (["declined"] if call else [])


@pytest.mark.parametrize("policy", ["at_most_once", "at_least_once"])
def test_the_same_request_while_the_first_runs(bench: Bench, policy: str) -> None:
    """A second delivery of a request is never run, and waits for the outcome of the first."""
    first, second = Handed(bench.request(policy)), Handed(bench.request(policy))
    seen: list[str | None] = []

    def hook() -> None:
        bench.processor.process(second)
        seen.append(second.outcome)

    bench.hook = hook
    bench.processor.process(first)
    assert seen == [None]
    assert (first.outcome, second.outcome) == ("accepted", "accepted")
    assert len(bench.ran) == 1


def test_an_answer_that_gets_lost(bench: Bench) -> None:
    """Under at_least_once a call whose answer could not be sent is given back, with its duplicates."""
    first, second = Handed(bench.request("at_least_once")), Handed(bench.request("at_least_once"))

    def hook() -> None:
        bench.processor.process(second)
        get_bus(bench.transport.url).fail_next(TransportUnavailable("away"))

    bench.hook = hook
    bench.processor.process(first)
    assert (first.outcome, second.outcome) == ("requeued", "requeued")
    bench.hook = lambda: None
    third = Handed(bench.request("at_least_once"), redelivered=True)
    bench.processor.process(third)
    assert (len(bench.ran), third.outcome) == (2, "accepted")


def test_an_answer_that_no_server_could_give(bench: Bench) -> None:
    """A call whose answer is too large, even as an error, is done: another server would fare no better."""
    delivery = Handed(bench.request("at_least_once"))
    bench.hook = lambda: get_bus(bench.transport.url).fail_next(MessageTooLarge("more than it takes"), 2)
    bench.processor.process(delivery)
    assert delivery.outcome == "accepted"


def test_a_lost_answer_under_at_most_once(bench: Bench) -> None:
    """Under at_most_once a call is done when it has run, whatever becomes of its answer."""
    delivery = Handed(bench.request("at_most_once"))
    bench.hook = lambda: get_bus(bench.transport.url).fail_next(TransportUnavailable("away"))
    bench.processor.process(delivery)
    assert delivery.outcome == "accepted"
    bench.processor.process(Handed(bench.request("at_most_once")))
    assert len(bench.ran) == 1


@pytest.mark.parametrize(
    ("hints", "ttl", "left"),
    [
        (None, None, None),
        (None, 5.0, 5.0),
        (Hints(), None, None),
        (Hints(ttl=5.0), None, 5.0),
        (Hints(ttl=5.0), 3.0, 3.0),
        (Hints(ttl=3.0), 5.0, 3.0),
        (Hints(ttl=50.0, at=0.0), None, 1.0),
        (Hints(ttl=0.5, at=0.0), None, 0.5),
        (Hints(ttl=50.0, at=1e10), None, 50.0),
        (Hints(ttl=50.0, at=0.0), 20.0, 20.0),
    ],
)
def test_time_left(hints: Hints | None, ttl: float | None, left: float | None) -> None:
    """The least of what is known counts; a clock alone takes no more than all but a second."""
    found = time_left(Request("m", hints=hints), Handed(Request("m"), ttl=ttl))
    assert found == (None if left is None else pytest.approx(left, abs=0.2))


def test_a_cast_that_could_not_be_accepted_is_dead_lettered_when_redelivered(bench: Bench) -> None:
    """A cast that was not run because its connection was lost is dead-lettered when it is redelivered here."""
    request = bench.request("at_most_once", call=False)
    bench.processor.process(Handed(request, alive=False))
    again = Handed(request, redelivered=True)
    bench.processor.process(again)
    found = bench.transport.inspect(Address("dead", "msgbus", "foo"), 1.0)
    assert found is not None
    assert found.messages == 1
    assert again.outcome == "accepted"
    assert not bench.ran


class Unsettleable(Handed):
    """A delivery of a broken driver: to settle it raises."""

    __slots__ = ()

    def accept(self) -> bool:
        super().accept()
        raise RuntimeError("accept")


@pytest.mark.parametrize("policy", ["at_most_once", "at_least_once"])
@pytest.mark.parametrize("call", [True, False], ids=["call", "cast"])
def test_a_delivery_that_cannot_be_settled_costs_nothing_else(bench: Bench, policy: str, call: bool) -> None:
    """Where a driver's `accept` raises, nothing stays unfinished, and what waited for the outcome is settled."""
    further = Handed(bench.request(policy, call=call))
    bench.hook = lambda: bench.processor.process(further)
    bench.processor.process(Unsettleable(bench.request(policy, call=call)))
    assert further.outcome == ("accepted" if bench.ran else None)


@pytest.mark.parametrize("policy", ["at_most_once", "at_least_once"])
def test_a_call_whose_answer_cannot_be_sent_is_settled(
    bench: Bench, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where neither the result nor an error can be sent, since sending raises, the delivery is settled all the same."""

    def send(*_args: object, **_kwargs: object) -> None:
        raise TransportUnavailable("broken")

    monkeypatch.setattr(bench.transport, "send", send)
    delivery = Handed(bench.request(policy))
    bench.processor.process(delivery)
    assert delivery.outcome == ("accepted" if policy == "at_most_once" else "requeued")


def test_a_dead_letter_that_cannot_be_sent_is_settled(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the driver does not even take a dead letter, the delivery is settled all the same: the log has it."""

    def send(*_args: object, **_kwargs: object) -> None:
        raise ValueError("broken")

    monkeypatch.setattr(bench.transport, "send", send)
    delivery = Handed(bench.request("at_most_once", call=False), redelivered=True)
    bench.processor.process(delivery)
    assert delivery.outcome == "accepted"


def test_a_stream_is_accepted_when_it_begins(bench: Bench) -> None:
    """Under at_least_once too, and before its first item: nobody else is to begin a stream that has begun."""
    request = bench.request("at_least_once")
    request.method, request.hints = "items", Hints(ttl=60.0, policy="at_least_once", window=10)
    delivery = Handed(request)
    seen: list[str | None] = []
    bench.hook = lambda: seen.append(delivery.outcome)
    bench.processor.process(delivery)
    assert seen == ["accepted"]
    assert bench.kinds() == ["started", "items", "reply"]


def test_an_answer_for_a_client_that_has_died(bench: Bench) -> None:
    """Under at_least_once too the request is done when it has run: nobody waits, so that nobody is to run it again."""
    request = bench.request("at_least_once")
    request.reply_to = "nobody is there"
    delivery = Handed(request)
    bench.processor.process(delivery)
    until(lambda: delivery.outcome, "the delivery is settled", EVENT_TIMEOUT)
    assert delivery.outcome == "accepted"
    bench.processor.process(Handed(request, redelivered=True))
    assert len(bench.ran) == 1


@pytest.mark.parametrize(("policy", "while_it_runs"), [("at_most_once", "accepted"), ("at_least_once", None)])
def test_the_servers_policy_holds_where_the_client_says_nothing(policy: str, while_it_runs: str | None) -> None:
    """A stock client's request, or one with a policy that nobody knows, is run as the option rpc_delivery says."""
    bench = Bench(rpc_delivery=policy)
    for number, hints in enumerate((None, Hints(), Hints(policy="exactly_once"))):
        request = bench.request(policy, unique_id=f"id {number}")
        request.hints = hints
        delivery = Handed(request)
        seen: list[str | None] = []
        bench.hook = lambda seen=seen, delivery=delivery: seen.append(delivery.outcome)  # type: ignore[misc]
        bench.processor.process(delivery)
        assert seen == [while_it_runs]
    bench.transport.cleanup()


def test_what_waits_for_a_request_that_was_not_run(bench: Bench) -> None:
    """Where an at_most_once request could not be accepted, a further delivery of it is given back, and not dropped."""
    second = Handed(bench.request("at_most_once"))

    class Dying(Handed):
        """The connection breaks, and the message comes again while the first delivery is being accepted."""

        __slots__ = ()

        def accept(self) -> bool:
            bench.processor.process(second)
            return False

    bench.processor.process(Dying(bench.request("at_most_once")))
    assert second.outcome == "requeued"
    assert not bench.ran


@pytest.mark.parametrize("policy", ["at_most_once", "at_least_once"])
def test_what_is_kept_on_disk(bench: Bench, monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
    """A dead letter in any case, and the answer to an at_least_once call, which is as safe as its request."""
    sent: list[tuple[Address, Message]] = []
    send = bench.transport.driver.send

    def note(address: Address, message: Message, *, mandatory: bool) -> Any:
        sent.append((address, message))
        return send(address, message, mandatory=mandatory)

    monkeypatch.setattr(bench.transport.driver, "send", note)
    bench.processor.process(Handed(bench.request(policy)))
    lost = bench.request("at_most_once", call=False, unique_id="another")
    bench.processor.process(Handed(lost, redelivered=True))
    assert [(address.kind, message.durable) for address, message in sent] == [
        ("inbox", policy == "at_least_once"),
        ("dead", True),
    ]


@pytest.mark.parametrize("end", [None, 600.0])
def test_the_items_of_a_stream_wait_as_long_as_its_client(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, end: float | None
) -> None:
    """While this side is cut off, they wait as long as the client had said that it waits for the first item."""
    sent: list[Message] = []
    send = bench.transport.driver.send

    def note(address: Address, message: Message, *, mandatory: bool) -> Any:
        sent.append(message)
        return send(address, message, mandatory=mandatory)

    monkeypatch.setattr(bench.transport.driver, "send", note)
    request = bench.request("at_most_once")
    request.method, request.hints = "items", Hints(ttl=60.0, policy="at_most_once", window=10, end=end)
    bench.processor.process(Handed(request))
    assert bench.kinds() == ["started", "items", "reply"]
    assert [message.ttl for message in sent] == pytest.approx([60.0] * 3, abs=EVENT_TIMEOUT / 2)


@pytest.mark.parametrize("content_type", [JSON, MSGPACK])
@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_an_answer_comes_in_the_codec_of_the_request(content_type: str, codec: str) -> None:
    """Whatever the server's own option says: a client need not know another codec than its own."""
    bench = Bench(rpc_codec=codec)
    bench.processor.process(Handed(bench.request("at_most_once"), content_type=content_type))
    request = bench.request("at_most_once", unique_id="another", no="such argument")
    bench.processor.process(Handed(request, content_type=content_type))
    assert bench.content_types == [content_type, content_type]
    assert [frame.failure is None for frame in bench.frames] == [True, False]
    bench.transport.cleanup()


@pytest.mark.parametrize("again", [True, False])
def test_a_call_that_is_sent_again_can_be_cancelled_at_once(bench: Bench, again: bool) -> None:
    """Its client may know the server's inbox from the first time. That of a new call learns it later."""
    found: list[bool] = []
    bench.hook = lambda: found.append("id" in bench.transport.server_calls)
    request = bench.request("at_least_once")
    assert request.hints is not None
    request.hints.again = again
    bench.processor.process(Handed(request))
    assert found == [again]
    assert not bench.transport.server_calls


def code_of(child: int) -> int:
    """The code that a child process exits with."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_fork_while_a_dead_letter_is_being_sent(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child goes on: that the outcome is not known there ends neither the child nor the request."""
    sent: LightFuture[Sent] = LightFuture()
    monkeypatch.setattr(bench.transport.driver, "send", lambda *_args, **_options: sent)
    request = bench.request("at_least_once", call=False)
    request.method = "missing"
    delivery = Handed(request)
    bench.processor.process(delivery)
    child = os.fork()
    if not child:
        try:
            fail_inherited(sent)  # as drivers do
            os._exit(42 if delivery.outcome is None else 1)
        finally:
            os._exit(2)
    assert code_of(child) == 42
    sent.set_result(Sent())
    assert delivery.outcome == "accepted"


def test_a_child_that_the_hook_for_dead_letters_forks(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends when it leaves the hook: the parent stores the letter."""
    children: list[int] = []

    def hook(_letter: DeadLetter) -> None:
        child = os.fork()
        if child:
            children.append(child)
        else:
            monkeypatch.setattr(bench.transport, "send", lambda *_args, **_options: os._exit(9))

    processor = Processor(bench.transport, "h1", RPCDispatcher([bench]), hook)
    request = bench.request("at_least_once", call=False)
    request.method = "missing"
    delivery = Handed(request)
    processor.process(delivery)
    assert code_of(children[0]) == 0
    assert delivery.outcome == "accepted"


@pytest.mark.parametrize("call", [True, False], ids=["call", "cast"])
def test_a_child_that_a_generator_forks(bench: Bench, call: bool) -> None:
    """It ends with the code that it asks for when it leaves the generator; the parent's request goes on."""
    children: list[int] = []

    def fork() -> None:
        child = os.fork()
        if not child:
            raise SystemExit(3)
        children.append(child)

    bench.hook = fork
    request = bench.request("at_least_once", call=call)
    request.method = "items"
    request.args = {}
    delivery = Handed(request)
    bench.processor.process(delivery)
    assert code_of(children[0]) == 3
    assert (delivery.outcome, len(bench.frames)) == ("accepted", call)
