"""Handlers of the module logging that send notifications."""

from __future__ import annotations

import logging
import pathlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

import msgbus
from msgbus.conformance.waiting import until
from msgbus.drivers.base import Address
from msgbus.drivers.fake import FakeDriver, get_bus
from msgbus.notify import outbox, recorded_notifications
from tests.notify.support import Endpoint, listening
from tests.support import conf_from_file, exit_code_of, new_transport, new_url


@contextmanager
def logger_with(handler: logging.Handler) -> Iterator[logging.Logger]:
    """A logger of a service, with a handler, which is closed at the end."""
    logger = logging.getLogger("service.orders")
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    try:
        yield logger
    finally:
        logger.removeHandler(handler)
        handler.close()


def now() -> str:
    """The present time, as notifications have it."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")


def test_a_record_is_a_notification_of_its_level() -> None:
    """With what the record says, its arguments in the text, the traceback, and what the program has added."""
    url = new_url()
    transport = new_transport(url)
    endpoint = Endpoint()
    with listening(transport, endpoint), logger_with(msgbus.LoggingNotificationHandler(url, "host1")) as logger:
        logger.warning("order %d is late", 7, extra={"order": 7, "odd": object})
        level, _, publisher, event_type, payload, _ = endpoint.next()
        assert (level, publisher, event_type) == ("warn", "host1", "logrecord")
        assert (payload["msg"], payload["levelname"], payload["name"]) == ("order 7 is late", "WARNING", logger.name)
        assert payload["funcName"] == "test_a_record_is_a_notification_of_its_level"
        assert (payload["exc_info"], payload["extra"]) == (None, {"order": 7, "odd": "<class 'object'>"})
        try:
            raise ValueError("bad")
        except ValueError:
            logger.exception("failed")
        level, *_, payload, _ = endpoint.next()
        assert level == "error"
        assert payload["exc_info"].endswith("ValueError: bad\n")
        for number, expected in ((logging.CRITICAL, "critical"), (logging.INFO, "info"), (logging.DEBUG, "debug")):
            logger.log(number, "x")
            assert endpoint.next()[0] == expected
    transport.cleanup()


def test_a_topic_of_ones_own() -> None:
    """In the place of ``notifications``."""
    url = new_url()
    transport = new_transport(url)
    endpoint = Endpoint()
    with (
        listening(transport, endpoint, targets=[msgbus.Target(topic="logs")]),
        logger_with(msgbus.LoggingNotificationHandler(url, topic="logs")) as logger,
    ):
        logger.info("x")
        assert endpoint.next()[4]["msg"] == "x"
    transport.cleanup()


def test_what_the_sending_logs_is_not_sent(caplog: pytest.LogCaptureFixture) -> None:
    """A message system that takes nothing does not make an endless chain of records about that."""
    url = new_url()
    transport = new_transport(url)
    handler = msgbus.LoggingNotificationHandler(url)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        endpoint = Endpoint()
        with listening(transport, endpoint):
            get_bus(url).fail_next(msgbus.MessageTooLarge("too large"))
            root.error("first")
            root.error("second")
            assert endpoint.next()[4]["msg"] == "second"
        assert endpoint.came.empty()
        assert caplog.text.count("was not sent") == 1
    finally:
        root.removeHandler(handler)
        handler.close()
    transport.cleanup()


def test_what_an_argument_logs_when_it_is_written_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it make an endless chain of records."""
    url = new_url()
    transport = new_transport(url)
    endpoint = Endpoint()
    with listening(transport, endpoint), logger_with(msgbus.LoggingNotificationHandler(url)) as logger:

        class Talking:
            def __str__(self) -> str:
                logger.info("I am asked: %s", self)
                return "text"

        monkeypatch.setattr(logger, "propagate", False)  # Other handlers write it too.
        logger.info("%s", Talking())
        logger.info("next")
        assert {endpoint.next()[4]["msg"] for _ in range(2)} == {"text", "next"}
    assert endpoint.came.empty()
    transport.cleanup()


def test_the_first_record_of_a_process_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the message system is connected while the program runs: one that ends can start no thread for that."""
    sent: list[str] = []
    send = FakeDriver.send

    def send_slowly(driver: FakeDriver, address: Address, *args: Any, **more: Any) -> Any:
        threading.Event().wait(0.1)
        sent.append(address.topic)
        return send(driver, address, *args, **more)

    monkeypatch.setattr(FakeDriver, "send", send_slowly)
    with logger_with(msgbus.LoggingNotificationHandler(new_url())) as logger:
        logger.info("first")
        assert "notifications.info" in sent


# The message system is away


def test_logging_never_waits_for_the_message_system(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is away, records wait in a queue. Those for which it has no room are dropped, and counted in the log."""
    monkeypatch.setattr(outbox, "LIMIT", 3)
    url = new_url()
    transport = new_transport(url)
    endpoint = Endpoint()
    with listening(transport, endpoint), logger_with(msgbus.LoggingNotificationHandler(url)) as logger:
        logger.info("first")  # It connects, and is waited for.
        assert endpoint.next()[4]["msg"] == "first"
        get_bus(url).stop()
        for number in range(10):
            logger.info("%d", number)
        assert "was not sent" not in caplog.text  # A record that is waited for is given up in the end.
        get_bus(url).start()
        until(lambda: ": 3 were waiting already" in caplog.text, "the line")
        dropped = int(re.findall(r"(\d+) log records were not sent as notifications", caplog.text)[0])
        came = {endpoint.next()[4]["msg"] for _ in range(10 - dropped)}
        assert len(came) == 10 - dropped
        assert came >= {"0", "1", "2"}
        assert dropped in {6, 7}  # One more has room if the first was already being sent.
    assert endpoint.came.empty()
    transport.cleanup()


def test_a_record_that_has_waited_has_the_time_at_which_it_was_logged() -> None:
    """And not that at which the message system came back."""
    url = new_url()
    transport = new_transport(url)
    endpoint = Endpoint()
    with listening(transport, endpoint), logger_with(msgbus.LoggingNotificationHandler(url)) as logger:
        logger.info("first")  # It connects, and is waited for.
        assert endpoint.next()[4]["msg"] == "first"
        get_bus(url).stop()
        logger.info("one")
        logger.info("two")  # This one waits for the other.
        logged = now()
        until(lambda: now() > logged, "a later time")
        get_bus(url).start()
        assert all(endpoint.next()[5]["timestamp"] <= logged for _ in range(2))
    transport.cleanup()


def test_records_that_a_closed_handler_could_not_send_are_counted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing it waits for them, but not for ever. What is logged afterwards is dropped."""
    monkeypatch.setattr(outbox, "SECONDS", 0.1)
    url = new_url()
    handler = msgbus.LoggingNotificationHandler(url)
    get_bus(url).stop()
    with logger_with(handler) as logger:
        for number in range(3):
            logger.info("%d", number)
        handler.close()
        logger.info("too late")
        until(lambda: "log records were not sent as notifications: their handler was closed" in caplog.text, "the line")


def test_a_closed_handler_has_sent_everything() -> None:
    """Closing it is enough: what was logged before arrives."""
    url = new_url()
    transport = new_transport(url)
    endpoint = Endpoint()
    with listening(transport, endpoint):
        with logger_with(msgbus.LoggingNotificationHandler(url)) as logger:
            for number in range(100):
                logger.info("%d", number)
        assert {endpoint.next()[4]["msg"] for _ in range(100)} == {str(number) for number in range(100)}
    transport.cleanup()


def test_a_program_that_ends_has_sent_everything(tmp_path: pathlib.Path) -> None:
    """It need not close its handler."""
    program = (
        "import logging, msgbus\n"
        f"handler = msgbus.LoggingNotificationHandler('zmq://{tmp_path}')\n"
        "logging.getLogger('a').addHandler(handler)\n"
        "for number in range(100): logging.getLogger('a').warning('%d', number)\n"
    )
    transport = new_transport(f"zmq://{tmp_path}")
    endpoint = Endpoint()
    with listening(transport, endpoint):
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert {endpoint.next()[4]["msg"] for _ in range(100)} == {str(number) for number in range(100)}
    transport.cleanup()


def test_a_forked_child_sends_what_it_logs(tmp_path: pathlib.Path) -> None:
    """By a thread of its own: it does not have its parent's."""
    url = f"zmq://{tmp_path}"
    transport = new_transport(url)
    endpoint = Endpoint()
    with listening(transport, endpoint), logger_with(msgbus.LoggingNotificationHandler(url)) as logger:
        logger.info("parent")
        assert endpoint.next()[4]["msg"] == "parent"

        def in_child() -> None:
            logger.info("child")
            logger.handlers[0].flush()

        assert exit_code_of(in_child) == 0
        assert endpoint.next()[4]["msg"] == "child"
    transport.cleanup()


# Errors alone


def configured(tmp_path: pathlib.Path, url: str, *drivers: str) -> Any:
    """A configuration with these drivers of notifications."""
    lines = "".join(f"driver = {driver}\n" for driver in drivers)
    return conf_from_file(tmp_path, f"[DEFAULT]\ntransport_url = {url}\n[oslo_messaging_notifications]\n{lines}")


def test_errors_are_published(tmp_path: pathlib.Path) -> None:
    """What is logged as an error is a notification of the level error; what is below that is none."""
    url = new_url()
    transport = new_transport(url)
    endpoint = Endpoint()
    handler = msgbus.PublishErrorsHandler(configured(tmp_path, url, "messagingv2"))
    with listening(transport, endpoint), logger_with(handler) as logger:
        logger.warning("never mind")
        logger.error("order %d is lost", 7)
        level, _, publisher, event_type, payload, _ = endpoint.next()
        assert (level, publisher, event_type) == ("error", "error.publisher", "error_notification")
        assert payload == {"error": "order 7 is lost"}
    assert endpoint.came.empty()
    transport.cleanup()


def test_errors_are_not_published_to_the_log(tmp_path: pathlib.Path) -> None:
    """That would log them again."""
    handler = msgbus.LoggingErrorNotificationHandler(configured(tmp_path, new_url(), "log", "test"))
    with logger_with(handler) as logger:
        logger.error("x")
        assert recorded_notifications(handler._notifier.transport) == []
