"""What errors of sending name: the method, the target and the message system; for threads and for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

import msgbus
from msgbus import (
    CastsFailed,
    MessageUndeliverable,
    MessagingException,
    OutcomeUnknown,
    Target,
    TransportUnavailable,
    aio,
)
from msgbus.drivers.base import Address, Inbox, Message
from msgbus.drivers.fake import FakeDriver, get_bus
from tests.support import EVENT_TIMEOUT, new_conf, new_url

WORLDS = ["threading", "asyncio"]
TARGET = Target(topic="stock")
NOWHERE = "rabbit://guest:a-password@127.0.0.1:1/"
"""A RabbitMQ that is not there: nothing listens at that port."""
SHORT = 0.2
"""Seconds that a verb has where it cannot succeed."""

CASTS = ["cast", "fanout_cast", "cast_many"]
CALLS = ["call", "multicall", "ping"]


class Asking:
    """A client of either kind, whose verbs fail."""

    def __init__(self, world: str, url: str, *, timeout: float = SHORT, delivery: Any = None) -> None:
        self.world = world
        self.url = url
        self.options = {"timeout": timeout, "delivery": delivery}

    def errors(self, *verbs: str) -> list[MessagingException]:
        """Call each of these verbs, one after another, over one transport, and return what each raises."""
        if self.world == "asyncio":
            return asyncio.run(self._errors_of_tasks(verbs))
        transport = msgbus.get_rpc_transport(new_conf(), self.url)
        client = msgbus.get_rpc_client(transport, TARGET, **self.options)
        server = msgbus.get_rpc_server(transport, TARGET(server="s1"), [])

        def first_item(*args: Any) -> Any:
            return next(client.multicall(*args))

        found = []
        for verb in verbs:
            func = {"start": server.start, "multicall": first_item}.get(verb) or getattr(client, verb)
            with pytest.raises(MessagingException) as caught:
                func(*arguments(verb))
            found.append(caught.value)
        transport.cleanup()
        return found

    async def _errors_of_tasks(self, verbs: tuple[str, ...]) -> list[MessagingException]:
        found = []
        async with aio.get_rpc_transport(new_conf(), self.url) as transport:
            client = aio.get_rpc_client(transport, TARGET, **self.options)
            server = aio.get_rpc_server(transport, TARGET(server="s1"), [])

            async def first_item(*args: Any) -> Any:
                return await anext(client.multicall(*args))

            for verb in verbs:
                func = {"start": server.start, "multicall": first_item}.get(verb) or getattr(client, verb)
                with pytest.raises(MessagingException) as caught:
                    await func(*arguments(verb))
                found.append(caught.value)
        return found


def arguments(verb: str) -> tuple[Any, ...]:
    """What a verb is called with."""
    return {"ping": (SHORT,), "start": (SHORT,), "cast_many": ({}, [("count", {})])}.get(verb, ({}, "count"))


def check(error: Exception, verb: str, url: str) -> None:
    """The error names the method, the target and the message system."""
    text = str(error)
    method = "ping" if verb == "ping" else "count"
    where = "all servers of topic 'stock'" if verb in ("ping", "fanout_cast") else "topic 'stock'"
    assert f"{method!r} on {where} (exchange 'msgbus')" in text
    assert str(msgbus.TransportURL.parse(new_conf(), url)) in text
    assert "a-password" not in text


@pytest.mark.parametrize("delivery", ["at_most_once", "at_least_once"])
@pytest.mark.parametrize("world", WORLDS)
def test_errors_while_the_message_system_is_away_name_method_target_and_system(world: str, delivery: str) -> None:
    """Of every verb, under either policy."""
    url = new_url()
    bus = get_bus(url)
    bus.stop()
    verbs = [*CASTS, *CALLS]
    for verb, error in zip(verbs, Asking(world, url, delivery=delivery).errors(*verbs), strict=True):
        check(error, verb, url)
        # The last where a busy machine comes to it only after the ping's time.
        assert any(words in str(error) for words in ("away", "it is not known to be delivered", "not taken in"))


@pytest.mark.parametrize("world", WORLDS)
def test_errors_while_a_broker_cannot_be_reached_name_method_target_and_system(world: str) -> None:
    """And what the driver says of the connection. No password is in them."""
    verbs = [*CASTS, *CALLS]
    for verb, error in zip(verbs, Asking(world, NOWHERE).errors(*verbs), strict=True):
        check(error, verb, NOWHERE)
        assert "127.0.0.1:1" in str(error).replace(str(msgbus.TransportURL.parse(new_conf(), NOWHERE)), "")
        assert ("cannot open the inbox of this process" in str(error)) == (verb in CALLS)


@pytest.mark.parametrize("world", WORLDS)
def test_a_ping_that_the_message_system_does_not_take_in_time_is_an_error(
    world: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no empty list, also if the driver has not said yet that it gives the message up."""
    url = new_url()
    monkeypatch.setattr(FakeDriver, "send", lambda *_args, **_more: Future())
    monkeypatch.setattr(FakeDriver, "inspect", lambda *_args: Future())
    [error] = Asking(world, url).errors("ping")
    assert isinstance(error, msgbus.TransportUnavailable)
    check(error, "ping", url)
    assert "not taken in" in str(error)


@pytest.mark.parametrize("world", WORLDS)
def test_a_call_whose_request_the_driver_gives_up_a_moment_late_says_why(
    world: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller's time is over first, as on a busy machine: that is still no timeout of a server."""
    url = new_url()
    bus = get_bus(url)
    bus.stop()
    monkeypatch.setattr(Message, "publish_within", SHORT + 0.02)
    verbs = ("call", "multicall")
    for verb, error in zip(verbs, Asking(world, url).errors(*verbs), strict=True):
        assert isinstance(error, msgbus.TransportUnavailable)
        check(error, verb, url)
        assert "was away" in str(error)


class Unopened(Inbox):
    """An inbox that is never open, or was refused."""

    def __init__(self, error: Exception | None) -> None:
        self.address = Address("inbox", name="unopened")
        self.ready: Future[None] = Future()
        if error is not None:
            self.ready.set_exception(error)

    def close(self) -> Future[None]:
        done: Future[None] = Future()
        done.set_result(None)
        return done


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: None, ": cannot reach the in-memory message system "),
        (lambda: TransportUnavailable("no right to create it"), ": no right to create it"),
    ],
    ids=["late", "refused"],
)
@pytest.mark.parametrize("world", WORLDS)
def test_errors_of_opening_the_inbox_name_who_needs_it(
    world: str, make: Callable[[], Exception | None], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The method and target of a call, a stream or a ping, or the target of a server that starts; and the transport."""
    monkeypatch.setattr(FakeDriver, "open_inbox", lambda _driver, _on_delivery: Unopened(make()))
    url = new_url()
    *errors, of_server = Asking(world, url).errors(*CALLS, "start")
    for verb, error in zip(CALLS, errors, strict=True):
        assert type(error) is TransportUnavailable
        check(error, verb, url)
    assert str(of_server).startswith("<Target topic=stock, server=s1>: ")
    for error in (*errors, of_server):
        assert f": cannot open the inbox of this process over {url}{says}" in str(error)


@pytest.mark.parametrize(
    ("delivery", "kind", "says"),
    [
        ("at_most_once", OutcomeUnknown, ": it may or may not have been delivered: the line was cut"),
        ("at_least_once", TransportUnavailable, ": the line was cut"),
    ],
)
@pytest.mark.parametrize("world", WORLDS)
def test_errors_of_casts_that_may_have_been_delivered_name_method_and_target(
    world: str, delivery: str, kind: type[Exception], says: str
) -> None:
    """They keep their class and what can be read from them; `cast_many` has the same error as `cast`."""
    url = new_url()
    bus = get_bus(url)
    bus.fail_next(TransportUnavailable("the line was cut", maybe_delivered=True), 1000)
    for error in Asking(world, url, delivery=delivery).errors("cast", "cast_many"):
        found = error.error if isinstance(error, CastsFailed) else error
        assert type(found) is kind
        check(found, "cast", url)
        assert says in str(found)
        assert getattr(found, "maybe_delivered", True)
        if isinstance(error, CastsFailed):
            assert error.unknown == [0]


@pytest.mark.parametrize("world", WORLDS)
def test_an_error_that_several_get_names_for_each_what_it_is_about(world: str) -> None:
    """A driver may give many messages one error: what one caller gets does not change that of another."""
    url = new_url()
    bus = get_bus(url)
    shared = MessageUndeliverable("nobody is there")
    shared.add_note("a note of the driver")
    bus.fail_next(shared, 3)
    verbs = ["call", "cast", "fanout_cast"]
    for verb, error in zip(verbs, Asking(world, url, timeout=EVENT_TIMEOUT).errors(*verbs), strict=True):
        assert type(error) is MessageUndeliverable
        check(error, verb, url)
        assert str(error).count(" on ") == 1
        assert error.__notes__ == ["a note of the driver"]
    assert str(shared) == "nobody is there"
