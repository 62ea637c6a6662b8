"""Interceptors of the classic API: `rpc.init` is given them."""

from __future__ import annotations

import json
import queue
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import msgbus
from msgbus import InterceptedRequest, Proceed, SerializationError, rpc
from msgbus.drivers.base import Message
from msgbus.encoding import encode_notification
from msgbus.message import JSON, MAX_METADATA
from tests.support import EVENT_TIMEOUT, new_conf, new_url

TOPIC = "notifications.info"

Log = list[Any]


class Manager:
    """What is called."""

    def __init__(self) -> None:
        self.came: queue.Queue[Any] = queue.Queue()

    def greet(self, context: Any, name: str) -> Any:
        return f"Hello, {name}", context.to_dict().get("tenant"), msgbus.current_request().metadata

    def note(self, context: Any, text: str) -> None:
        self.came.put(text)

    def count(self, context: Any, to: int) -> Iterator[int]:
        yield from range(to)

    def on_message(self, message: dict[str, Any]) -> None:
        request = msgbus.current_request()
        self.came.put((message, request.context, request.metadata))


Start = Callable[[list[msgbus.Interceptor], list[msgbus.Interceptor]], Manager]


@pytest.fixture
def start() -> Iterator[Start]:
    """Binds `rpc` to a bus in memory, with interceptors of clients and of servers, and consumes there."""
    connections: list[rpc.Connection] = []

    def start(client: list[msgbus.Interceptor], server: list[msgbus.Interceptor]) -> Manager:
        rpc.init(new_conf(transport_url=new_url(), rpc_response_timeout=EVENT_TIMEOUT), client, server)
        manager, connection = Manager(), rpc.create_connection()
        connections.append(connection)
        connection.create_consumer("svc", manager)
        connection.create_consumer("svc", manager, fanout=True)
        connection.join_consumer_pool(manager.on_message, "pool", TOPIC)
        connection.consume_in_thread()
        return manager

    yield start
    for connection in connections:
        connection.close()
    rpc.init(new_conf())
    rpc.cleanup()


def noting(log: Log) -> msgbus.Interceptor:
    """An interceptor that notes what passes."""

    def intercept(request: InterceptedRequest, proceed: Proceed) -> Any:
        log.append((request.kind, request.method, request.target.topic))
        request.context["tenant"] = "t1"
        request.metadata["token"] = "x"
        return proceed(request)

    return intercept


def test_all_that_is_sent_and_run_passes_them(start: Start) -> None:
    """Calls, casts, casts to all, streams and notifications, on both sides."""
    here: Log = []
    there: Log = []
    manager = start([noting(here)], [noting(there)])
    assert rpc.call({}, "svc", {"method": "greet", "args": {"name": "Ada"}}) == ["Hello, Ada", "t1", {"token": "x"}]
    rpc.cast({}, "svc", {"method": "note", "args": {"text": "cast"}})
    assert manager.came.get(timeout=EVENT_TIMEOUT) == "cast"
    rpc.fanout_cast({}, "svc", {"method": "note", "args": {"text": "fanout"}})
    assert manager.came.get(timeout=EVENT_TIMEOUT) == "fanout"
    proxy = rpc.RpcProxy("svc", "1.0")
    assert list(proxy.multicall({}, proxy.make_msg("count", to=2))) == [0, 1]
    rpc.notify({"user": "ada"}, TOPIC, {"event_type": "made"})
    message, context, metadata = manager.came.get(timeout=EVENT_TIMEOUT)
    assert message.pop("_unique_id")
    assert message == {"event_type": "made", "_context_user": "ada", "_context_tenant": "t1"}
    assert (context, metadata) == ({"user": "ada", "tenant": "t1"}, {"token": "x"})
    assert here == there
    assert here == [
        ("call", "greet", "svc"),
        ("cast", "note", "svc"),
        ("cast", "note", "svc"),
        ("multicall", "count", "svc"),
        ("notification", "", TOPIC),
    ]


def test_interceptors_of_a_notification_may_change_it_or_keep_it(start: Start) -> None:
    """The message is its arguments; without proceeding nothing is sent, or no callback is called."""
    seen: Log = []

    def sending(request: InterceptedRequest, proceed: Proceed) -> Any:
        assert request.time_left is not None
        if request.args["event_type"] != "secret":
            request.args["sent"] = True
            proceed(request)

    def receiving(request: InterceptedRequest, proceed: Proceed) -> Any:
        seen.append(request.args.pop("_unique_id") and dict(request.args))
        assert request.time_left is None
        if request.args["event_type"] != "dull":
            request.args["received"] = True
            request.context = {"by": "server"}
            proceed(request)

    manager = start([sending], [receiving])
    mine = {"event_type": "made"}
    for message in ({"event_type": "secret"}, {"event_type": "dull"}, mine):
        rpc.notify({"user": "ada"}, TOPIC, message)
    message, context, _ = manager.came.get(timeout=EVENT_TIMEOUT)
    assert message == {"event_type": "made", "sent": True, "received": True, "_context_by": "server"}
    assert context == {"by": "server"}
    assert sorted(found["event_type"] for found in seen) == ["dull", "made"]
    assert mine == {"event_type": "made"}
    assert manager.came.empty()


def test_a_notification_that_has_lost_its_context_has_an_empty_one(start: Start) -> None:
    """As for the other verbs. What is no message is refused."""

    def clear(request: InterceptedRequest, proceed: Proceed) -> Any:
        request.context = None
        if "refuse" in request.args:
            request.args = None  # type: ignore[assignment]
        return proceed(request)

    manager = start([clear], [])
    rpc.notify({"user": "ada"}, TOPIC, {"text": "one"})
    message, context, _ = manager.came.get(timeout=EVENT_TIMEOUT)
    assert (message["text"], context) == ("one", {})
    with pytest.raises(TypeError):
        rpc.notify({}, TOPIC, {"refuse": 1})


def test_methods_of_the_classic_api_are_counted_by_name(start: Start) -> None:
    """And others are not, where an interceptor refuses them."""

    def refuse(request: InterceptedRequest, proceed: Proceed) -> Any:
        if request.args:
            return proceed(request)
        raise PermissionError(request.method)

    start([], [refuse])
    rpc.call({}, "svc", {"method": "greet", "args": {"name": "Ada"}})
    for method in ("stranger", "greet"):
        with pytest.raises(PermissionError):
            rpc.call({}, "svc", {"method": method})
    found = rpc.call({}, "svc", {"method": "stats", "namespace": "msgbus"})
    assert {name: counts["begun"] for name, counts in found["methods"].items()} == {"greet": 2}
    assert found["others"]["failed"] == 1


def test_a_callback_gets_a_notification_as_ever_without_interceptors(start: Start) -> None:
    """The metadata of its sender is not in the message; it can be read in the current request."""

    def add(request: InterceptedRequest, proceed: Proceed) -> Any:
        request.metadata["token"] = "x"
        return proceed(request)

    manager = start([add], [])
    rpc.notify({"user": "ada"}, TOPIC, {"event_type": "made"})
    message, context, metadata = manager.came.get(timeout=EVENT_TIMEOUT)
    assert message.pop("_unique_id")
    assert message == {"event_type": "made", "_context_user": "ada"}
    assert (context, metadata) == ({"user": "ada"}, {"token": "x"})


def test_interceptors_of_a_callback_proceed_once(start: Start) -> None:
    """As those of a method."""
    errors: Log = []

    def twice(request: InterceptedRequest, proceed: Proceed) -> Any:
        proceed(request)
        try:
            proceed(request)
        except msgbus.RPCDispatcherError as exc:
            errors.append(str(exc))

    manager = start([], [twice])
    for _ in range(2):
        rpc.notify({}, TOPIC, {"event_type": "made"})
        manager.came.get(timeout=EVENT_TIMEOUT)
    assert "called proceed a second time" in errors[0]
    assert manager.came.empty()


@pytest.mark.parametrize(
    "extension",
    [{"metadata": {"x": "y" * (MAX_METADATA + 1)}}, {"metadata": {"x": 1}}, {"metadata": [1]}],
    ids=["too much", "a number", "a list"],
)
def test_metadata_of_a_notification_that_makes_no_sense_is_dropped(start: Start, extension: Any) -> None:
    """Whoever has sent it: the notification arrives without."""
    manager = start([], [])
    transport = rpc.binding.transport()
    body = json.loads(encode_notification({"event_type": "made"}, {}, "u", JSON))
    body["oslo.message"] = json.dumps({**json.loads(body["oslo.message"]), "_msgbus": extension})
    address = transport.address(msgbus.Target(topic=TOPIC))
    message = Message(json.dumps(body).encode(), JSON, "u")
    transport.driver.send(address, message, mandatory=True).result(EVENT_TIMEOUT)
    assert manager.came.get(timeout=EVENT_TIMEOUT) == ({"event_type": "made", "_unique_id": "u"}, {}, {})


def test_metadata_of_a_notification_that_cannot_be_sent(start: Start) -> None:
    """It is refused, in words."""

    def add(request: InterceptedRequest, proceed: Proceed) -> Any:
        request.metadata["x"] = "y" * MAX_METADATA
        return proceed(request)

    start([add], [])
    with pytest.raises(SerializationError, match="may have"):
        rpc.notify({}, TOPIC, {"event_type": "made"})


async def asynchronous(request: InterceptedRequest, proceed: Any) -> Any:
    """An interceptor that is ``async``."""
    return await proceed(request)


@pytest.mark.parametrize("name", ["client_interceptors", "server_interceptors"])
def test_async_interceptors_are_refused(name: str) -> None:
    """The classic API is one for threads."""
    wrong: Any = {name: [asynchronous]}
    with pytest.raises(TypeError, match=r"is async, and msgbus\.rpc runs on threads"):
        rpc.init(new_conf(), **wrong)
