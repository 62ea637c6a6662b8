from __future__ import annotations

import logging
import os
import pathlib
import re
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import pytest
from oslo_config import cfg

from msgbus import (
    CallCancelled,
    ConfigurationError,
    MessageTooLarge,
    MessageUndeliverable,
    MessagingException,
    MessagingTimeout,
    SerializationError,
    Target,
    TransportBlocked,
    TransportUnavailable,
    TransportURL,
    get_rpc_client,
    get_rpc_server,
    get_rpc_transport,
)
from msgbus.drivers.base import Address, Driver, Inbox, Message, OnDelivery, QueueInfo, Sent, Subscription
from msgbus.drivers.fake import FakeDriver, get_bus
from msgbus.drivers.toolkit.loop import Loop
from msgbus.encoding import encode_control, encode_reply
from msgbus.message import JSON, Control, Reply
from msgbus.pending import PendingCall
from msgbus.sending import send_control
from msgbus.transport import Transport
from tests.support import EVENT_TIMEOUT, new_conf, new_transport, new_url

TOPIC = Address("topic", "x", "foo")


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("max_mesage_size=5", "did you mean max_message_size?"),
        ("zzz=5", "there are: max_message_size"),
        ("max_message_size=x", "option max_message_size"),
        ("max_message_size=0", "option max_message_size"),
    ],
)
@pytest.mark.parametrize("where", ["url", "file"])
def test_wrong_options_of_a_driver(option: str, says: str, where: str, tmp_path: pathlib.Path) -> None:
    """A typo or a wrong value, in the URL or in the driver's group of a file, is an error and not silence."""
    url, arguments = new_url(), []
    if where == "url":
        url = f"{url}?{option}"
    else:
        path = tmp_path / "service.conf"
        path.write_text(f"[msgbus_fake]\n{option}\n")
        arguments = ["--config-file", str(path)]
    with pytest.raises(ConfigurationError) as caught:
        get_rpc_transport(new_conf(*arguments), url)
    assert says in str(caught.value)


def test_configuration_is_read_from_the_object_that_is_passed_in() -> None:
    """Options are registered on the given configuration, which may be new, and never on the global one."""
    conf = cfg.ConfigOpts()
    transport = get_rpc_transport(conf, new_url())
    assert transport.conf is conf
    assert conf.control_exchange == "msgbus"
    assert "control_exchange" not in cfg.CONF
    transport.cleanup()


def test_rpc_backend_names_the_driver() -> None:
    """Without a URL, rpc_backend says which driver it is."""
    transport = get_rpc_transport(new_conf(rpc_backend="nova.rpc.impl_fake"))
    assert isinstance(transport.driver, FakeDriver)
    assert repr(transport) == "<Transport fake:///>"
    transport.cleanup()


@pytest.mark.parametrize(
    ("target", "address"),
    [
        (Target(topic="foo"), Address("topic", "msgbus", "foo")),
        (Target(exchange="x", topic="foo"), Address("topic", "x", "foo")),
        (Target(topic="foo", server="h1"), Address("server", "msgbus", "foo", "h1")),
        (Target(topic="foo", fanout=True), Address("fanout", "msgbus", "foo")),
        (Target(topic="foo", server="h1", fanout=True), Address("fanout", "msgbus", "foo")),
        (Target(topic="foo", fanout=False), Address("topic", "msgbus", "foo")),
    ],
)
def test_address_of_a_target(target: Target, address: Address) -> None:
    """A target is one server, all of them, or any of the topic; its exchange is control_exchange if it names none."""
    transport = new_transport()
    assert transport.address(target) == address
    transport.cleanup()


class ScriptedInbox(Inbox):
    """An inbox that a test makes ready, or refuses."""

    def __init__(self, number: int) -> None:
        self.address = Address("inbox", name=f"inbox-{number}")
        self.ready: Future[None] = Future()
        self.closed = False

    def close(self) -> Future[None]:
        self.closed = True
        done: Future[None] = Future()
        done.set_result(None)
        return done


class ScriptedDriver(Driver):
    """A driver that keeps what is sent, and whose outcomes a test decides on."""

    def __init__(self) -> None:
        self.sent: list[tuple[Address, Message, bool, Future[Sent]]] = []
        self.outcomes: list[Exception | None] = []
        self.come = threading.Semaphore(0)
        self.inboxes: list[ScriptedInbox] = []

    def send(self, address: Address, message: Message, *, mandatory: bool) -> Future[Sent]:
        future: Future[Sent] = Future()
        self.sent.append((address, message, mandatory, future))
        if self.outcomes:
            error = self.outcomes.pop(0)
            if error is None:
                future.set_result(Sent(1))
            else:
                future.set_exception(error)
        self.come.release()
        return future

    def subscribe(self, addresses: Sequence[Address], on_delivery: OnDelivery, *, prefetch: int) -> Subscription:
        raise NotImplementedError

    def open_inbox(self, on_delivery: OnDelivery) -> Inbox:
        self.inboxes.append(ScriptedInbox(len(self.inboxes)))
        return self.inboxes[-1]

    def close(self) -> None:
        pass


@pytest.fixture
def scripted() -> tuple[Transport, ScriptedDriver]:
    """A transport over a driver that does what the test says."""
    conf = new_conf()
    driver = ScriptedDriver()
    return Transport(conf, TransportURL("scripted"), driver, Loop("test")), driver


def test_inbox_is_opened_once(scripted: tuple[Transport, ScriptedDriver]) -> None:
    """A process has one inbox, which is opened when it is first asked for."""
    transport, driver = scripted
    assert not driver.inboxes
    with pytest.raises(TransportUnavailable, match=r"cannot reach ScriptedDriver: gave up at the deadline"):
        transport.inbox(time.monotonic())
    driver.inboxes[0].ready.set_result(None)
    assert transport.inbox(time.monotonic()) == "inbox-0"
    assert transport.inbox(0.0) == "inbox-0"
    assert len(driver.inboxes) == 1


def test_inbox_that_is_refused(scripted: tuple[Transport, ScriptedDriver]) -> None:
    """Where the message system refuses the inbox, its error is raised, and the next request tries again."""
    transport, driver = scripted
    with pytest.raises(TransportUnavailable):
        transport.inbox(time.monotonic())
    driver.inboxes[0].ready.set_exception(MessagingException("no rights"))
    with pytest.raises(MessagingException, match="no rights"):
        transport.inbox(time.monotonic() + EVENT_TIMEOUT)
    assert driver.inboxes[0].closed
    with pytest.raises(TransportUnavailable):
        transport.inbox(time.monotonic())
    driver.inboxes[1].ready.set_result(None)
    assert transport.inbox(time.monotonic()) == "inbox-1"


@pytest.mark.parametrize("length", [255, 256])
def test_inbox_with_a_long_name(scripted: tuple[Transport, ScriptedDriver], length: int) -> None:
    """A server drops requests whose inbox has a longer name than it reads: the client says so at once."""
    transport, driver = scripted
    with pytest.raises(TransportUnavailable):
        transport.inbox(time.monotonic())
    driver.inboxes[0].address = Address("inbox", name="x" * length)
    driver.inboxes[0].ready.set_result(None)
    if length <= 255:
        assert transport.inbox(time.monotonic()) == "x" * length
        return
    for _ in range(2):
        with pytest.raises(SerializationError, match="the name of the inbox has 256 characters, and may have 255"):
            transport.inbox(time.monotonic())


def test_inbox_after_cleanup(scripted: tuple[Transport, ScriptedDriver]) -> None:
    """A closed transport opens no inbox."""
    transport, driver = scripted
    transport.cleanup()
    with pytest.raises(CallCancelled):
        transport.inbox(time.monotonic())
    assert not driver.inboxes


MESSAGE = Message(b"body", "text/plain", "the id", 60.0, True)
LOST = TransportUnavailable("cut", maybe_delivered=True)


def outcome_of(
    transport: Transport, seconds: float = EVENT_TIMEOUT, retry_undeliverable: float | None = None
) -> tuple[Future[None], list[BaseException | None]]:
    """Have a message sent until a deadline: what is done when the outcome is known, and the outcomes."""
    done: Future[None] = Future()
    outcomes: list[BaseException | None] = []

    def on_outcome(error: BaseException | None) -> None:
        outcomes.append(error)
        done.set_result(None)

    transport.send(
        TOPIC,
        MESSAGE,
        mandatory=True,
        until=time.monotonic() + seconds,
        on_outcome=on_outcome,
        retry_undeliverable=retry_undeliverable,
    )
    return done, outcomes


def test_a_message_is_sent_again_after_an_unknown_outcome(scripted: tuple[Transport, ScriptedDriver]) -> None:
    """What may or may not have arrived is sent again, with the same id and less time, until it has arrived."""
    transport, driver = scripted
    driver.outcomes = [LOST, LOST, None]
    done, outcomes = outcome_of(transport)
    done.result(EVENT_TIMEOUT)
    assert outcomes == [None]
    assert [(address, message.id, message.body, message.durable) for address, message, _, _ in driver.sent] == [
        (TOPIC, "the id", b"body", True)
    ] * 3
    lefts = [message.ttl or 0.0 for _, message, _, _ in driver.sent[1:]]
    assert lefts == sorted(lefts, reverse=True)
    assert all(0 < left <= EVENT_TIMEOUT for left in lefts)
    transport.cleanup()


@pytest.mark.parametrize(
    "error",
    [
        MessageUndeliverable("nobody"),
        TransportUnavailable("away"),
        MessageTooLarge("large"),
        CallCancelled("closed"),
    ],
)
def test_what_was_certainly_not_sent_is_not_sent_again(
    error: Exception, scripted: tuple[Transport, ScriptedDriver]
) -> None:
    """What was certainly not sent, or cannot be, is not tried again."""
    transport, driver = scripted
    driver.outcomes = [error]
    _, outcomes = outcome_of(transport)
    assert outcomes == [error]
    assert len(driver.sent) == 1


def test_nothing_is_sent_again_after_the_deadline(scripted: tuple[Transport, ScriptedDriver]) -> None:
    """When there is no time for another try, the last outcome stands."""
    transport, driver = scripted
    driver.outcomes = [LOST]
    _, outcomes = outcome_of(transport, seconds=0)
    assert outcomes == [LOST]
    assert len(driver.sent) == 1


def test_a_reply_is_sent_again_until_its_client_is_back(scripted: tuple[Transport, ScriptedDriver]) -> None:
    """A reply whose client is away is tried again, for it may be reconnecting; for as long as that is asked for."""
    transport, driver = scripted
    nobody = MessageUndeliverable("nobody")
    driver.outcomes = [nobody, nobody, None]
    done, outcomes = outcome_of(transport, retry_undeliverable=time.monotonic() + EVENT_TIMEOUT)
    done.result(EVENT_TIMEOUT)
    assert outcomes == [None]
    driver.outcomes = [nobody]
    _, outcomes = outcome_of(transport, retry_undeliverable=time.monotonic())
    assert outcomes == [nobody]
    transport.cleanup()


REFUSALS = [
    pytest.param(MessageUndeliverable("nobody"), id="nobody"),
    pytest.param(TransportUnavailable("away"), id="away"),
    pytest.param(TransportBlocked("full"), id="full"),
]


@pytest.mark.parametrize("refusal", REFUSALS)
def test_after_an_unknown_outcome_a_refusal_is_not_final(
    refusal: Exception, scripted: tuple[Transport, ScriptedDriver]
) -> None:
    """An undeliverable second try says nothing about the first: it is tried again, until a server takes it."""
    transport, driver = scripted
    driver.outcomes = [LOST, refusal, refusal, None]
    done, outcomes = outcome_of(transport)
    done.result(EVENT_TIMEOUT)
    assert outcomes == [None]
    assert len(driver.sent) == 4
    transport.cleanup()


@pytest.mark.parametrize("refusal", [*REFUSALS, pytest.param(MessageTooLarge("too large"), id="too large")])
def test_at_the_deadline_the_error_names_the_unknown_outcome(
    refusal: Exception, scripted: tuple[Transport, ScriptedDriver]
) -> None:
    """Where no later try is taken, the error says that the first may have been, why, and what became of the last."""
    transport, driver = scripted
    driver.outcomes = [LOST] + [refusal] * 100
    done, outcomes = outcome_of(transport, seconds=0.3)
    done.result(EVENT_TIMEOUT)
    (error,) = outcomes
    assert isinstance(error, TransportUnavailable)
    assert error.maybe_delivered
    assert error.__cause__ is refusal
    assert "may have run" in str(error)
    assert str(LOST) in str(error)
    assert str(refusal) in str(error)
    assert len(driver.sent) >= 2
    transport.cleanup()


def test_a_frame_for_a_client_that_is_away_is_tried_no_longer_than_asked(
    scripted: tuple[Transport, ScriptedDriver],
) -> None:
    """After an unknown outcome, too, nobody's being there counts from the time that was given for it."""
    transport, driver = scripted
    driver.outcomes = [LOST, MessageUndeliverable("nobody")]
    done, outcomes = outcome_of(transport, retry_undeliverable=time.monotonic())
    done.result(EVENT_TIMEOUT)
    assert isinstance(outcomes[0], TransportUnavailable)
    assert outcomes[0].maybe_delivered
    assert len(driver.sent) == 2
    transport.cleanup()


def test_tries_end_with_the_time_that_the_message_may_wait(scripted: tuple[Transport, ScriptedDriver]) -> None:
    """It may be less than the time to the deadline, so that a call learns why before it gives up itself."""
    transport, driver = scripted
    outcome: Future[None] = Future()
    message = Message(b"body", "text/plain", "the id", 600.0, send_timeout=0.1)
    driver.outcomes = [LOST] + [MessageUndeliverable("nobody")] * 100
    end = time.monotonic() + 600
    transport.send(TOPIC, message, mandatory=True, until=end, on_outcome=lambda _error: outcome.set_result(None))
    outcome.result(EVENT_TIMEOUT)
    assert all((again.send_timeout or 0.0) <= 0.1 < (again.ttl or 0.0) for _, again, _, _ in driver.sent)
    transport.cleanup()


def test_cleanup_ends_what_waits_for_its_next_try(scripted: tuple[Transport, ScriptedDriver]) -> None:
    """A caller that waits for the outcome gets `CallCancelled`, and nothing more is sent."""
    transport, driver = scripted
    driver.outcomes = [LOST]
    done, outcomes = outcome_of(transport)
    transport.cleanup()
    done.result(EVENT_TIMEOUT)
    assert isinstance(outcomes[0], CallCancelled)
    assert len(driver.sent) == 1


def test_nothing_is_sent_again_for_a_call_that_is_over(scripted: tuple[Transport, ScriptedDriver]) -> None:
    """A request that nobody waits for any more, perhaps since it was answered, is not run by who comes later."""
    transport, driver = scripted
    driver.outcomes = [LOST]
    pending = PendingCall(
        "c", "m", TOPIC, began=0.0, deadline=0.0, grace=0.0, repeatable=True, monitor=None, allowed_modules=()
    )
    outcome: Future[BaseException | None] = Future()
    end = time.monotonic() + EVENT_TIMEOUT
    transport.send(TOPIC, MESSAGE, mandatory=True, until=end, pending=pending, on_outcome=outcome.set_result)
    assert outcome.result(EVENT_TIMEOUT) is LOST
    assert len(driver.sent) == 1
    transport.cleanup()


def test_nothing_is_sent_again_after_cleanup(scripted: tuple[Transport, ScriptedDriver]) -> None:
    """After a transport was closed nothing is tried again."""
    transport, driver = scripted
    _, outcomes = outcome_of(transport)
    transport.cleanup()
    driver.sent[0][3].set_exception(LOST)
    assert outcomes == [LOST]


@pytest.mark.parametrize(
    ("answer", "known"),
    [
        (QueueInfo(2, 5), QueueInfo(2, 5)),
        (MessageUndeliverable("none"), QueueInfo(0, 0)),
        (TransportUnavailable("away"), None),
        (None, None),
    ],
)
def test_inspect(
    answer: QueueInfo | Exception | None, known: QueueInfo | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What can be learnt of an address in time is; an address that does not exist has no consumers."""
    transport = new_transport()
    future: Future[QueueInfo] = Future()
    if isinstance(answer, QueueInfo):
        future.set_result(answer)
    elif answer is not None:
        future.set_exception(answer)
    monkeypatch.setattr(transport.driver, "inspect", lambda _address: future)
    assert transport.inspect(TOPIC, 0.0) == known
    transport.cleanup()


def test_inspect_without_the_capability(scripted: tuple[Transport, ScriptedDriver]) -> None:
    """A driver that does not declare `inspect` is not asked."""
    assert scripted[0].inspect(TOPIC, 0.0) is None


class Handler:
    def __init__(self) -> None:
        self.taken: list[Control] = []

    def on_control(self, control: Control) -> None:
        self.taken.append(control)


def test_frames_to_the_inbox(caplog: pytest.LogCaptureFixture) -> None:
    """Replies go to the calls that wait, control frames to the requests that run; all else is dropped."""
    transport = new_transport()
    inbox = Address("inbox", name=transport.inbox(time.monotonic() + EVENT_TIMEOUT))
    pending = PendingCall(
        "c", "m", TOPIC, began=0.0, deadline=0.0, grace=0.0, repeatable=False, monitor=None, allowed_modules=()
    )
    transport.router.add(pending)
    handler: Any = Handler()
    transport.server_calls["r"] = handler
    bodies = [
        encode_reply(Reply("c", result=5, ending=True), JSON),
        encode_reply(Reply("unknown", ending=True), JSON),
        encode_control(Control("r", "credit", 3), JSON),
        encode_control(Control("unknown", "cancel"), JSON),
        b"garbage",
    ]
    with caplog.at_level(logging.DEBUG, "msgbus"):
        for body in bodies:
            assert transport.send(inbox, Message(body, JSON, "id"), mandatory=True).exception() is None
    assert pending.answer is not None
    assert pending.answer.result == 5
    assert handler.taken == [Control("r", "credit", 3)]
    assert "is not running here" in caplog.text
    assert [record.levelno for record in caplog.records if "unreadable message" in record.message] == [logging.WARNING]
    transport.cleanup()


def test_send_control_waits_for_nobody() -> None:
    """A control frame goes out whether or not anybody takes it."""
    transport = new_transport()
    send_control(transport, "nowhere", Control("c", "cancel"), JSON)
    get_bus(transport.url).fail_next(LOST)
    send_control(transport, "nowhere", Control("c", "cancel"), JSON)
    transport.cleanup()


def test_cleanup_again() -> None:
    """A transport can be closed any number of times."""
    transport = new_transport()
    transport.cleanup()
    transport.cleanup()


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # it is what this is about
def test_a_forked_child_starts_clean() -> None:
    """In a forked child a transport has no calls, no window taken and no inbox of its parent's."""
    transport = new_transport(rpc_send_window=1)
    name = transport.inbox(time.monotonic() + EVENT_TIMEOUT)
    assert transport.window.acquire(0)
    handler: Any = Handler()
    transport.server_calls["r"] = handler
    child = os.fork()
    if child == 0:
        code = 1
        try:
            clean = not transport.server_calls and not len(transport.router) and transport.window.acquire(0)
            code = 0 if clean and transport.inbox(time.monotonic() + EVENT_TIMEOUT) != name else 1
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert transport.inbox(0.0) == name
    transport.cleanup()


def test_one_id_finds_all_that_is_logged_of_a_call(caplog: pytest.LogCaptureFixture) -> None:
    """At level debug there is one line for each message on each side, and each has the id that an error names."""
    transport = new_transport()
    server = get_rpc_server(transport, Target(topic="t", server="s"), [Slow()])
    server.start()
    client = get_rpc_client(transport, Target(topic="t"), timeout=EVENT_TIMEOUT)
    with caplog.at_level(logging.DEBUG, "msgbus"):
        client.call({}, "answer")
        with pytest.raises(MessagingTimeout) as caught:
            client.prepare(timeout=0.5).call({}, "never")
        Slow.release.set()
        server.wait()
    transport.cleanup()
    first = caplog.messages[0].split()[1]
    assert [line.partition(" (")[0] for line in caplog.messages if first in line] == [
        f"sending {first} to topic 't'",
        f"received {first}: 'answer' by topic 't'",
        next(line for line in caplog.messages if line.startswith(f"sending {first}.1.reply to inbox")).partition(" (")[
            0
        ],
        f"received {first}.1.reply: reply for {first}",
    ]
    found = re.search(r"call ([0-9a-f]{32})", str(caught.value))
    assert found is not None
    assert f"received {found[1]}: 'never' by topic 't' (exchange 'msgbus')" in caplog.messages


class Slow:
    release = threading.Event()

    def answer(self, _ctxt: object) -> int:
        return 1

    def never(self, _ctxt: object) -> None:
        self.release.wait(EVENT_TIMEOUT)


def test_something_else_than_a_configuration_is_refused() -> None:
    """A URL in its place is a TypeError that says so."""
    url: Any = "rabbit://localhost/"
    with pytest.raises(TypeError, match="ConfigOpts, not str"):
        get_rpc_transport(url)
