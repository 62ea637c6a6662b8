"""Notifications on an event loop: what `msgbus.Notifier` and its listeners do, awaited."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

import msgbus
from msgbus import Target, aio, failed_casts
from msgbus.drivers.fake import get_bus
from msgbus.notify import NotificationDriver, recorded_notifications
from msgbus.notify.notification import PRIORITIES
from tests.aio.support import conf_with, on_loop, until
from tests.support import EVENT_TIMEOUT

TARGET = Target(topic="notifications")
REQUEUE = msgbus.NotificationResult.REQUEUE


class Endpoint:
    """Has all levels, and keeps what comes; its methods are ``async`` but for ``debug``."""

    def __init__(self, *answers: Any) -> None:
        self.came: list[tuple[Any, ...]] = []
        self.answers = list(answers)
        self.may_go = True

    async def _take(self, *came: Any) -> Any:
        self.came.append(came)
        while not self.may_go:  # noqa: ASYNC110 - it never may
            await asyncio.sleep(0.001)
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def audit(self, *args: Any) -> Any:
        return await self._take("audit", *args)

    def debug(self, *args: Any) -> None:
        self.came.append(("debug", *args))

    async def info(self, *args: Any) -> Any:
        return await self._take("info", *args)

    async def warn(self, *args: Any) -> Any:
        return await self._take("warn", *args)

    async def error(self, *args: Any) -> Any:
        return await self._take("error", *args)

    async def critical(self, *args: Any) -> Any:
        return await self._take("critical", *args)

    async def sample(self, *args: Any) -> Any:
        return await self._take("sample", *args)

    @property
    def events(self) -> list[Any]:
        """The types of what has come."""
        return [came[3] for came in self.came]


@asynccontextmanager
async def opened(url: str, **overrides: Any) -> AsyncIterator[aio.AsyncTransport]:
    """A transport."""
    async with aio.get_notification_transport(await conf_with(**overrides), url) as transport:
        yield transport


@asynccontextmanager
async def listening(transport: aio.AsyncTransport, *endpoints: Any, **options: Any) -> AsyncIterator[Any]:
    """A listener that is started, and stopped at the end."""
    targets: Sequence[Target] = [TARGET]
    batches = "batch_size" in options or "batch_timeout" in options
    make = aio.get_batch_notification_listener if batches else aio.get_notification_listener
    async with make(transport, targets, endpoints, **options) as listener:
        yield listener


@on_loop
async def _each_level(url: str) -> None:
    endpoint = Endpoint()
    async with opened(url) as transport, listening(transport, endpoint):
        notifier = aio.AsyncNotifier(transport, "orders", driver="messagingv2")
        for level in (*PRIORITIES, "warning"):
            await getattr(notifier, level)({"user": "ada"}, f"order.{level}", {"id": 7})
        await until(lambda: len(endpoint.came) == len(PRIORITIES) + 1)
    found = {came[3]: came for came in endpoint.came}
    assert found["order.info"][:5] == ("info", {"user": "ada"}, "orders", "order.info", {"id": 7})
    assert found["order.warning"][0] == "warn"
    assert {came[0] for came in endpoint.came} == set(PRIORITIES)


def test_each_level_reaches_the_method_of_its_name(url: str) -> None:
    """Also a plain one, which runs on a thread; on a message system with a broker and on one without."""
    _each_level(url)


@on_loop
async def _to_the_other_world(url: str) -> None:
    came: list[str] = []

    class Plain:
        def info(self, _ctxt: Any, _publisher: Any, event_type: str, _payload: Any, _metadata: Any) -> None:
            came.append(event_type)

    conf = await conf_with()
    blocking = await asyncio.to_thread(msgbus.get_notification_transport, conf, url)
    listener = msgbus.get_notification_listener(blocking, [TARGET], [Plain()])
    await asyncio.to_thread(listener.start)
    async with opened(url) as transport:
        await aio.AsyncNotifier(transport, driver="messaging").info({}, "to a thread", {})
        await until(lambda: came == ["to a thread"])
        await asyncio.to_thread(listener.wait, EVENT_TIMEOUT)
        endpoint = Endpoint()
        async with listening(transport, endpoint):
            notifier = await asyncio.to_thread(msgbus.Notifier, blocking, None, "messaging")
            await asyncio.to_thread(notifier.info, {}, "to a task", {})
            await until(lambda: endpoint.events == ["to a task"])
    await asyncio.to_thread(blocking.cleanup)


def test_threads_and_tasks_hear_each_other(url: str) -> None:
    """Their messages are the same."""
    _to_the_other_world(url)


def test_what_is_to_come_again_comes_again(fake_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where REQUEUE is returned, and where anything is raised, also by a task that is cancelled."""
    monkeypatch.setattr(failed_casts, "RETRY_DELAYS", (0.001,))

    @on_loop
    async def check() -> None:
        endpoint = Endpoint(REQUEUE, ValueError("bad"), asyncio.CancelledError())
        async with opened(fake_url) as transport, listening(transport, endpoint, allow_requeue=True):
            await aio.AsyncNotifier(transport, driver="messagingv2").info({}, "e", {})
            await until(lambda: len(endpoint.came) == 4)
        assert len({came[5]["message_id"] for came in endpoint.came}) == 1

    check()


class CancelsItself:
    """Its methods cancel the task that they run in, each time."""

    def __init__(self) -> None:
        self.came: list[str] = []

    async def info(self, _ctxt: Any, _publisher: Any, event_type: str, _payload: Any, _metadata: Any) -> None:
        self.came.append(event_type)
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(3600.0)


def test_an_endpoint_that_cancels_its_own_task_has_failed(fake_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """As if it had raised: without allow_requeue its notification goes to the next one, and does not come again."""

    @on_loop
    async def check() -> None:
        bad, beside, good = CancelsItself(), Endpoint(), Endpoint()
        async with opened(fake_url) as transport:
            async with listening(transport, bad, beside):
                await aio.AsyncNotifier(transport, driver="messagingv2").info({}, "e", {})
                await until(lambda: "does not come again" in caplog.text or len(bad.came) > 1)
            async with listening(transport, good):
                await aio.AsyncNotifier(transport, driver="messagingv2").info({}, "next", {})
                await until(lambda: "next" in good.events)
        assert (bad.came, beside.events, good.events) == (["e"], ["e"], ["next"])

    check()
    assert "its task was cancelled, and not by the listener" in caplog.text


def test_what_cancels_its_own_task_comes_again_after_a_pause(fake_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """With allow_requeue. If it came back at once, it would come thousands of times a second."""
    caplog.set_level(logging.INFO, "msgbus")

    @on_loop
    async def check() -> None:
        bad = CancelsItself()
        async with opened(fake_url) as transport, listening(transport, bad, allow_requeue=True):
            await aio.AsyncNotifier(transport, driver="messagingv2").info({}, "e", {})
            await until(lambda: "comes again in 1 s or later" in caplog.text or len(bad.came) > 10)
        assert bad.came == ["e"]

    check()


@on_loop
async def _stopped(url: str) -> None:
    slow, other = Endpoint(), Endpoint()
    slow.may_go = False
    async with opened(url) as transport:
        listener = aio.get_notification_listener(transport, [TARGET], [slow])
        await listener.start()
        await aio.AsyncNotifier(transport, driver="messagingv2").info({}, "e", {})
        await until(lambda: slow.came)
        assert await listener.wait(0.01) == 1
        async with listening(transport, other):
            await until(lambda: other.events == ["e"])


def test_what_a_listener_has_not_finished_goes_to_another(fake_url: str) -> None:
    """It is cancelled when its time is over, and given back."""
    _stopped(fake_url)


@on_loop
async def _batches(url: str) -> None:
    came: list[list[str]] = []

    class Batches:
        async def info(self, notifications: list[dict[str, Any]]) -> None:
            came.append([one["event_type"] for one in notifications])

    async with opened(url) as transport:
        notifier = aio.AsyncNotifier(transport, driver="messagingv2")
        async with listening(transport, Batches(), batch_size=3):
            for event in "abcde":
                await notifier.info({}, event, {})
            await until(lambda: came)
            assert came == [["a", "b", "c"]]
        assert came == [["a", "b", "c"], ["d", "e"]]


def test_batches_are_lists(fake_url: str) -> None:
    """With their size, and what is left at the end."""
    _batches(fake_url)


def test_the_method_of_a_batch_may_wait_for_its_listener(fake_url: str) -> None:
    """It waits for other batches, and not for its own, whatever the levels in that."""

    @on_loop
    async def check() -> None:
        found: list[int] = []

        class Ending:
            async def info(self, _notifications: Any) -> None:
                found.append(await listener.wait(EVENT_TIMEOUT))

            async def warn(self, _notifications: Any) -> None: ...

        async with opened(fake_url) as transport:
            notifier = aio.AsyncNotifier(transport, driver="messagingv2")
            listener = aio.get_batch_notification_listener(transport, [TARGET], [Ending()], batch_size=3)
            await listener.start()
            await notifier.info({}, "a", {})
            await notifier.info({}, "b", {})
            await notifier.warn({}, "c", {})
            await until(lambda: found)
        assert found == [0]

    check()


def test_a_batch_that_is_interrupted_begins_no_other_level(fake_url: str) -> None:
    """All of it goes to another listener."""

    @on_loop
    async def check() -> None:
        began: list[str] = []

        class Levels:
            async def error(self, _notifications: Any) -> None:
                began.append("error")
                await asyncio.sleep(3600.0)

            async def info(self, _notifications: Any) -> None:
                began.append("info")

        other = Endpoint()
        async with opened(fake_url) as transport:
            notifier = aio.AsyncNotifier(transport, driver="messagingv2")
            listener = aio.get_batch_notification_listener(transport, [TARGET], [Levels()], batch_size=2)
            await listener.start()
            await notifier.info({}, "i", {})
            await notifier.error({}, "e", {})
            await until(lambda: began)
            await listener.wait(0.01)
            assert began == ["error"]
            async with listening(transport, other):
                await until(lambda: sorted(other.events) == ["e", "i"])

    check()


def test_a_method_of_a_batch_that_cancels_its_task_does_not_harm_others(fake_url: str) -> None:
    """The next endpoint, and the other level, get theirs: only the listener's end keeps them from running."""

    @on_loop
    async def check() -> None:
        came: list[str] = []

        class Levels:
            async def error(self, _notifications: Any) -> None:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                await asyncio.sleep(3600.0)

            async def info(self, notifications: list[dict[str, Any]]) -> None:
                came.extend(one["event_type"] for one in notifications)

        class Errors:
            async def error(self, notifications: list[dict[str, Any]]) -> None:
                came.extend(one["event_type"] for one in notifications)

        async with opened(fake_url) as transport, listening(transport, Levels(), Errors(), batch_size=2):
            notifier = aio.AsyncNotifier(transport, driver="messagingv2")
            await notifier.info({}, "i", {})
            await notifier.error({}, "e", {})
            await until(lambda: came == ["e", "i"])

    check()


@on_loop
async def _batches_by_time(url: str) -> None:
    came: list[str] = []

    class Batches:
        async def info(self, notifications: list[dict[str, Any]]) -> None:
            came.extend(one["event_type"] for one in notifications)

    async with opened(url) as transport, listening(transport, Batches(), batch_timeout=0.05):
        notifier = aio.AsyncNotifier(transport, driver="messagingv2")
        await notifier.info({}, "a", {})
        await notifier.info({}, "b", {})
        await until(lambda: came == ["a", "b"])


def test_a_batch_is_complete_after_its_time(fake_url: str) -> None:
    """However few have come."""
    _batches_by_time(fake_url)


@on_loop
async def _interceptors(url: str) -> None:
    seen = []

    async def sign(request: msgbus.InterceptedRequest, proceed: aio.AsyncProceed) -> Any:
        request.metadata["token"] = "x"
        return await proceed(request)

    async def check(request: msgbus.InterceptedRequest, proceed: aio.AsyncProceed) -> Any:
        seen.append((request.kind, request.metadata, request.target.topic))
        return await proceed(request)

    plain: Any = print
    endpoint = Endpoint()
    async with opened(url) as transport, listening(transport, endpoint, interceptors=[check]):
        await aio.AsyncNotifier(transport, driver="messagingv2", interceptors=[sign]).info({}, "e", {})
        await until(lambda: endpoint.events == ["e"])
        with pytest.raises(TypeError, match="plain function"):
            aio.AsyncNotifier(transport, interceptors=[plain])
    assert seen == [("notification", {"token": "x"}, "notifications.info")]


def test_interceptors_are_awaited(fake_url: str) -> None:
    """On both sides; plain ones are refused."""
    _interceptors(fake_url)


def test_what_is_not_taken_is_logged_and_not_raised(fake_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """And what is wrong in itself is raised; ``retry`` counts as for threads."""

    @on_loop
    async def check() -> None:
        async with opened(fake_url) as transport:
            notifier = aio.AsyncNotifier(transport, driver="messagingv2", retry=0)
            get_bus(fake_url).fail_next(msgbus.TransportBlocked("alarm"))
            await notifier.info({}, "order.created", {})
            assert "a notification of order.created (INFO) was not sent" in caplog.text
            with pytest.raises(msgbus.SerializationError, match="'payload'"):
                await notifier.info({}, "e", object())
            endpoint = Endpoint()
            async with listening(transport, endpoint):
                get_bus(fake_url).fail_next(msgbus.TransportBlocked("alarm"))
                await notifier.prepare(retry=-1).info({}, "again", {})
                await until(lambda: "again" in endpoint.events)

    check()


def test_a_limited_number_of_retries(
    fake_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With two failures, one further try is not enough, and two are."""
    monkeypatch.setattr("msgbus.notify.sending.RETRY_PAUSE", 0.001)

    @on_loop
    async def check() -> None:
        async with opened(fake_url) as transport:
            for retry, fails in ((1, True), (2, False)):
                caplog.clear()
                get_bus(fake_url).fail_next(msgbus.TransportBlocked("alarm"), count=2)
                await aio.AsyncNotifier(transport, driver="messagingv2", retry=retry).info({}, "e", {})
                assert ("was not sent" in caplog.text) is fails

    check()


def test_each_topic_that_fails_is_known_and_the_others_are_sent(
    fake_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A line of the log for each: with what the message system says, or an interceptor raises."""

    async def refuse(request: msgbus.InterceptedRequest, proceed: aio.AsyncProceed) -> Any:
        if request.target.topic == "c.info":
            raise LookupError("no token for c")
        return await proceed(request)

    @on_loop
    async def check() -> None:
        endpoint = Endpoint()
        topics = ["a", "b", "c", "notifications"]
        async with opened(fake_url) as transport, listening(transport, endpoint):
            get_bus(fake_url).fail_next(msgbus.TransportBlocked("disk alarm"), count=2)
            notifier = aio.AsyncNotifier(transport, driver="messagingv2", retry=0, topics=topics, interceptors=[refuse])
            await notifier.info({}, "order.created", {})
            await until(lambda: endpoint.events == ["order.created"])

    check()
    lines = [record.getMessage() for record in caplog.records if "was not sent" in record.getMessage()]
    assert ["a.info" in lines[0], "b.info" in lines[1], "no token for c" in lines[2]] == [True] * 3
    assert len(lines) == 3


class Blocking(NotificationDriver):
    """A plug-in that waits for something."""

    def notify(self, ctxt: Any, message: Any, priority: str, retry: int) -> None:
        from time import sleep

        sleep(0.001)
        recorded_notifications(self.transport).append((ctxt, message, priority, retry))  # type: ignore[arg-type]


def test_a_plug_in_that_may_block_runs_on_a_thread(
    fake_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The drivers log, test and noop do not block, and are just called."""
    caplog.set_level(logging.INFO, "msgbus.notification")
    monkeypatch.setattr("msgbus.notify.base_notifier.load_notification_driver", _load)

    @on_loop
    async def check() -> None:
        async with opened(fake_url) as transport:
            notifier = aio.AsyncNotifier(transport, driver=["blocking", "log", "test", "noop"])
            await notifier.info({}, "e", {})
            assert len(recorded_notifications(transport)) == 2
            assert [record.name for record in caplog.records] == ["msgbus.notification.e"]

    check()


def _load(name: str) -> Any:
    from msgbus.notify.driver import load_notification_driver

    return Blocking if name == "blocking" else load_notification_driver(name)


@on_loop
async def _wrong_transport(url: str) -> None:
    async with opened(url) as transport:
        wrong: Any = transport
        with pytest.raises(TypeError, match="first argument of a notifier is a Transport"):
            msgbus.Notifier(wrong)
        with pytest.raises(TypeError, match="first argument of a listener is a Transport"):
            msgbus.get_notification_listener(wrong, [TARGET], [Endpoint()])
    with pytest.raises(TypeError, match=r"a notifier of msgbus\.aio is a transport of msgbus\.aio"):
        aio.AsyncNotifier(wrong.url)


def test_transports_of_the_other_kind_are_refused(fake_url: str) -> None:
    """Both ways."""
    _wrong_transport(fake_url)
