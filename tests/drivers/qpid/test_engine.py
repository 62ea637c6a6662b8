"""Errors while what a broker sends is handled: the connection is given up, and nothing comes again for ever."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("proton", reason="the extra qpid is not installed")

import cproton as c
from proton import Message

from msgbus.drivers.qpid import management
from msgbus.drivers.qpid.engine import Engine, EngineError, SendingLink
from msgbus.drivers.toolkit.loop import Loop
from tests.support import EVENT_TIMEOUT


class Peer:
    """The other side of an engine's connection, in the same process."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection, self._transport = c.pn_connection(), c.pn_transport()
        c.pn_transport_set_server(self._transport)
        c.pn_transport_bind(self._transport, self._connection)
        c.pn_connection_open(self._connection)

    def attach_all(self) -> None:
        """Accept the sessions and links that the engine has opened."""
        self._exchange()
        session = c.pn_session_head(self._connection, c.PN_REMOTE_ACTIVE)
        c.pn_session_open(session)
        link = c.pn_link_head(self._connection, c.PN_REMOTE_ACTIVE)
        c.pn_terminus_copy(c.pn_link_target(link), c.pn_link_remote_target(link))
        c.pn_link_open(link)
        self._exchange()

    def _exchange(self) -> None:
        if data := bytes(self._engine.pending()):
            self._engine.sent(c.pn_transport_push(self._transport, memoryview(data)))
        if (size := c.pn_transport_pending(self._transport)) > 0:
            _, data = c.pn_transport_peek(self._transport, size)
            c.pn_transport_pop(self._transport, size)
            self._engine.push(bytes(data))

    def free(self) -> None:
        c.pn_transport_unbind(self._transport)
        c.pn_decref(self._transport)
        c.pn_connection_release(self._connection)


@pytest.fixture
def engine() -> Iterator[Engine]:
    """An engine that is not connected."""
    engine = Engine("me", "vhost", 0.0)
    yield engine
    engine.leave()
    engine.free()


@pytest.fixture
def loop() -> Iterator[Loop]:
    """A loop that is closed at the end."""
    loop = Loop("test-loop")
    yield loop
    loop.close()


class Failing(SendingLink):
    """Raises when it is attached."""

    def __init__(self) -> None:
        self.called = 0

    def on_attached(self) -> None:
        self.called += 1
        raise RuntimeError("no room")


def test_an_error_in_a_callback_ends_the_connection(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """With its traceback in the log. The callback is not called again for the same event."""
    link = Failing()
    link.attach(engine, "name", "node")
    peer = Peer(engine)
    peer.attach_all()
    with pytest.raises(EngineError, match="no room"):
        engine.dispatch()
    engine.dispatch()
    assert link.called == 1
    assert any(record.exc_info for record in caplog.records)
    peer.free()


@pytest.mark.parametrize("status", ["many", [1], float("inf")])
def test_an_answer_without_a_status_is_an_answer(
    engine: Engine, loop: Loop, monkeypatch: pytest.MonkeyPatch, status: object
) -> None:
    """Whoever asked learns at once that it cannot be read."""
    found: list[management.Answer] = []
    asking = management.Management(engine, loop)
    asking.ask("READ", "queue", found.append)
    answers: Any = asking._answers
    message = Message(body={}, properties={"statusCode": status, "statusDescription": "text"}, correlation_id="1")
    monkeypatch.setattr(answers, "read", lambda _delivery: bytes(message.encode()))
    monkeypatch.setattr(answers, "flow", lambda _credit: None)
    monkeypatch.setattr(management, "settle", lambda _delivery: None)
    answers.on_delivery(None)
    assert found == [
        management.Answer(management.NO_ANSWER, "the status of the broker's answer is not a number; text", {})
    ]


def test_a_request_that_is_not_answered_ends(engine: Engine, loop: Loop) -> None:
    """Once, after the seconds that it may take; an answer that comes later is nobody's any more."""
    found: queue.Queue[management.Answer] = queue.Queue()
    asking = management.Management(engine, loop)
    loop.call(lambda: asking.ask("READ", "queue", found.put, timeout=0.05))
    assert found.get(timeout=EVENT_TIMEOUT) == management.Answer(management.SILENT, "no answer within 0.05 s", None)
    loop.call(asking.answered, 1, management.Answer(management.OK, "", {}))
    loop.call(found.put, management.Answer(management.NO_ANSWER, "the last one", None))
    assert found.get(timeout=EVENT_TIMEOUT).text == "the last one"
