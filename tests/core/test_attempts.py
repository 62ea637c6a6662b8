"""How often a cast was begun, where one server after another has it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

import msgbus.failed_casts
from msgbus import DeadLetter, RPCServer, Target, Transport, current_request, get_rpc_client, get_rpc_server
from msgbus.conformance.waiting import until
from msgbus.drivers.base import Address, Message
from msgbus.drivers.fake import get_bus
from msgbus.encoding import decode_request, encode_request, with_attempts
from msgbus.exceptions import SerializationError
from msgbus.message import JSON, MSGPACK, Hints, Request
from tests.support import EVENT_TIMEOUT, Awaited, new_transport

TOPIC = Address("topic", "msgbus", "foo")
DEAD = Address("dead", "msgbus", "foo")


class Failing(Awaited):
    """Raises each time, and notes which attempt that was."""

    def __init__(self) -> None:
        super().__init__()
        self.attempts: list[int] = []
        self.letters: list[DeadLetter] = []
        self.given_up = threading.Event()

    def fail(self, ctxt: object, value: Any = None) -> None:
        assert value in (None, {"a": [1, 2.5, "x"]})
        self.attempts.append(current_request().attempts)
        if isinstance(value, dict):
            value["a"] = "changed"
        self.came.release()
        raise RuntimeError("always")

    def hook(self, letter: DeadLetter) -> None:
        """What is given up."""
        self.letters.append(letter)
        self.given_up.set()


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds until a cast is run again, which the test may change: at first, longer than any test runs."""
    delays = [1000.0]
    monkeypatch.setattr(msgbus.failed_casts, "RETRY_DELAYS", delays)
    return delays


@pytest.fixture
def transport(delays: list[float]) -> Iterator[Transport]:
    """A transport in memory."""
    transport = new_transport(rpc_delivery="at_least_once")
    yield transport
    transport.cleanup()


def serve(transport: Transport, endpoint: Failing, name: str) -> RPCServer:
    """Start a server."""
    target = Target(topic="foo", server=name)
    server = get_rpc_server(transport, target, [endpoint], on_dead_letter=endpoint.hook)
    server.start()
    return server


def end(server: RPCServer) -> None:
    """Stop it, which takes no time although a cast waits to be run again."""
    server.stop()
    assert server.wait(EVENT_TIMEOUT) == 0


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize("server", [None, "h1"])
def test_the_count_goes_along_where_a_server_stops(
    transport: Transport, delays: list[float], codec: str, server: str | None
) -> None:
    """A cast that raised at one server and then at the next is given up after as many attempts as at one alone."""
    transport.conf.set_override("rpc_codec", codec)
    first, second, third = Failing(), Failing(), Failing()
    running = serve(transport, first, "h1")
    client = get_rpc_client(transport, Target(topic="foo", server=server))
    client.cast({"user": "ada"}, "fail", value={"a": [1, 2.5, "x"]})
    first.wait()
    end(running)
    running = serve(transport, second, "h1")
    second.wait()
    end(running)
    delays[0] = 0.001
    running = serve(transport, third, "h1")
    assert third.given_up.wait(EVENT_TIMEOUT)
    end(running)
    assert [one.attempts for one in (first, second, third)] == [[1], [2], [3, 4]]
    assert [len(one.letters) for one in (first, second, third)] == [0, 0, 1]
    assert third.letters[0].attempts == 4


def test_the_same_server_started_again_goes_on(transport: Transport, delays: list[float]) -> None:
    """A server that is stopped and started again takes up the cast that it had passed on."""
    endpoint = Failing()
    server = serve(transport, endpoint, "h1")
    get_rpc_client(transport, Target(topic="foo")).cast({}, "fail")
    endpoint.wait()
    end(server)
    delays[0] = 0.001
    server.start()
    assert endpoint.given_up.wait(EVENT_TIMEOUT)
    assert endpoint.attempts == [1, 2, 3, 4]
    end(server)


def test_a_cast_that_raises_while_its_server_stops(transport: Transport) -> None:
    """A cast that runs when its server is stopped, and raises, goes to the next one at once."""

    class Slow(Failing):
        def fail(self, ctxt: object, value: Any = None) -> None:
            self.came.release()
            assert go_on.wait(EVENT_TIMEOUT)
            raise RuntimeError("late")

    go_on, slow, second = threading.Event(), Slow(), Failing()
    server = serve(transport, slow, "h1")
    other = serve(transport, second, "h2")
    other.stop()
    get_rpc_client(transport, Target(topic="foo")).cast({}, "fail")
    slow.wait()
    server.stop()
    assert other.wait(EVENT_TIMEOUT) == 0
    other.start()
    go_on.set()
    assert server.wait(EVENT_TIMEOUT) == 0
    second.wait()
    assert second.attempts == [2]
    end(other)


def test_the_count_does_not_start_anew_where_a_server_is_lost(transport: Transport, delays: list[float]) -> None:
    """Of a server that was lost its delivery counts as one attempt, where the message system counts."""
    endpoint = Failing()
    lost = transport.driver.subscribe([TOPIC], lambda _delivery: None, prefetch=1)
    get_rpc_client(transport, Target(topic="foo")).cast({}, "fail")
    lost.close().result(0)
    lost = transport.driver.subscribe([TOPIC], lambda _delivery: None, prefetch=1)
    lost.close().result(0)
    delays[0] = 0.001
    server = serve(transport, endpoint, "h1")
    assert endpoint.given_up.wait(EVENT_TIMEOUT)
    assert endpoint.attempts == [3, 4]
    end(server)


def test_what_was_not_begun_does_not_count(transport: Transport, delays: list[float]) -> None:
    """A cast that a stopping server gives back without having begun it has all its attempts before it."""

    class Blocking(Failing):
        def block(self, ctxt: object) -> None:
            self.came.release()
            assert go_on.wait(EVENT_TIMEOUT)

    go_on, first, second = threading.Event(), Blocking(), Failing()
    transport.conf.set_override("executor_thread_pool_size", 1)
    server = serve(transport, first, "h1")
    client = get_rpc_client(transport, Target(topic="foo"))
    client.cast({}, "block")
    first.wait()
    client.cast({}, "fail")
    server.stop()
    go_on.set()
    assert server.wait(EVENT_TIMEOUT) == 0
    delays[0] = 0.001
    server = serve(transport, second, "h2")
    assert second.given_up.wait(EVENT_TIMEOUT)
    assert (first.attempts, second.attempts) == ([], [1, 2, 3, 4])
    end(server)


def test_a_fanout_that_waits_is_a_dead_letter_where_its_server_stops(transport: Transport) -> None:
    """Nobody else has it: it is not lost in silence, but given up with what it raised."""
    endpoint = Failing()
    server = serve(transport, endpoint, "h1")
    get_rpc_client(transport, Target(topic="foo")).fanout_cast({}, "fail")
    endpoint.wait()
    end(server)
    (letter,) = endpoint.letters
    assert "stopped" in letter.reason
    assert "RuntimeError: always" in letter.reason
    assert letter.attempts == 1
    assert letter.traceback
    found = transport.inspect(DEAD, 1.0)
    assert found is not None
    assert found.messages == 1


def test_a_cast_that_cannot_be_passed_on_is_given_back(transport: Transport, delays: list[float]) -> None:
    """Where no copy can be sent the message itself goes back, and counts as redelivered."""
    first, second = Failing(), Failing()
    server = serve(transport, first, "h1")
    get_rpc_client(transport, Target(topic="foo")).cast({}, "fail")
    first.wait()
    get_bus(transport.url).fail_next(msgbus.TransportBlocked("full"))
    end(server)
    delays[0] = 0.001
    server = serve(transport, second, "h2")
    assert second.given_up.wait(EVENT_TIMEOUT)
    assert second.attempts == [2, 3, 4]
    end(server)


def test_a_cast_whose_deadline_passes_before_its_next_try(transport: Transport) -> None:
    """It is given up at once: it is neither run too late nor dropped silently."""
    endpoint = Failing()
    server = serve(transport, endpoint, "h1")
    get_rpc_client(transport, Target(topic="foo"), timeout=500).cast({}, "fail")
    assert endpoint.given_up.wait(EVENT_TIMEOUT)
    assert "deadline" in endpoint.letters[0].reason
    assert "RuntimeError: always" in endpoint.letters[0].reason
    assert endpoint.attempts == [1]
    end(server)


@pytest.mark.parametrize("timeout", [None, 5000.0])
def test_a_cast_that_is_passed_on_keeps_its_limits(transport: Transport, timeout: float | None) -> None:
    """A cast that goes to another server is as safe as before, and expires when it would have expired."""
    endpoint = Failing()
    server = serve(transport, endpoint, "h1")
    get_rpc_client(transport, Target(topic="foo"), timeout=timeout).cast({}, "fail")
    endpoint.wait()
    end(server)
    found: list[Message] = []
    transport.driver.subscribe([TOPIC], lambda delivery: found.append(delivery.message), prefetch=1)
    until(lambda: found, "the copy", EVENT_TIMEOUT)
    assert found[0].durable
    assert found[0].ttl == (None if timeout is None else pytest.approx(timeout, abs=100))


@pytest.mark.parametrize("content_type", [JSON, MSGPACK])
@pytest.mark.parametrize("hints", [None, Hints(ttl=5.0, policy="at_least_once", attempts=1)])
def test_a_request_with_its_attempts(content_type: str, hints: Hints | None) -> None:
    """A copy that is passed on differs only in its attempts; an unreadable request is not copied."""
    request = Request("m", {"a": [1, None]}, "id", "ns", "1.1", context={"user": "ada"}, hints=hints)
    copy = decode_request(with_attempts(encode_request(request, content_type), content_type, 3), content_type)
    assert copy.hints is not None
    assert copy.hints.attempts == 3
    assert (copy.hints.ttl, copy.hints.policy) == ((None, None) if hints is None else (5.0, "at_least_once"))
    copy.hints = request.hints
    assert copy == request
    with pytest.raises(SerializationError):
        with_attempts(b"no request", content_type, 1)
