"""What a notifier sends, by which drivers, and what of it fails."""

from __future__ import annotations

import json
import logging
import pathlib
from typing import Any

import pytest

import msgbus
from msgbus.conformance.waiting import until
from msgbus.drivers.fake import get_bus
from msgbus.notify import recorded_notifications
from msgbus.notify.notification import PRIORITIES
from tests.notify.support import TARGET, Endpoint, listening
from tests.support import conf_from_file, new_conf, new_transport, new_url


def test_each_level_reaches_the_method_of_its_name(transport: msgbus.Transport, notifier: msgbus.Notifier) -> None:
    """With the context, who has sent it, the type, the payload, and the metadata."""
    endpoint = Endpoint()
    with listening(transport, endpoint):
        for level in (*PRIORITIES, "warning"):
            getattr(notifier, level)({"user": "ada"}, f"order.{level}", {"id": 7})
            came, ctxt, publisher, event_type, payload, metadata = endpoint.next()
            assert came == ("warn" if level == "warning" else level)
            assert (ctxt, publisher, event_type) == ({"user": "ada"}, "orders.host1", f"order.{level}")
            assert payload == {"id": 7}
            assert metadata.keys() == {"message_id", "timestamp"}


def test_a_notification_waits_for_its_first_listener(transport: msgbus.Transport, notifier: msgbus.Notifier) -> None:
    """What is sent before anybody has ever listened is kept, where the message system stores messages."""
    notifier.info({}, "one", None)
    notifier.info({}, "two", None)
    endpoint = Endpoint()
    with listening(transport, endpoint):
        assert sorted(endpoint.events(2)) == ["one", "two"]


def test_a_prepared_notifier_has_another_publisher(transport: msgbus.Transport, notifier: msgbus.Notifier) -> None:
    """The first one keeps its own; None is a value like others."""
    endpoint = Endpoint()
    with listening(transport, endpoint):
        notifier.prepare(publisher_id="other").info({}, "e", None)
        assert endpoint.next()[2] == "other"
        notifier.prepare(publisher_id=None).info({}, "e", None)
        assert endpoint.next()[2] is None
        notifier.info({}, "e", None)
        assert endpoint.next()[2] == "orders.host1"


def test_a_notification_goes_to_each_topic(transport: msgbus.Transport) -> None:
    """A listener of both gets it twice."""
    endpoint = Endpoint()
    both = [msgbus.Target(topic="a"), msgbus.Target(topic="b")]
    with listening(transport, endpoint, targets=both):
        msgbus.Notifier(transport, driver="messaging", topics=["a", "b"]).info({}, "e", None)
        assert endpoint.events(2) == ["e", "e"]


class Context:
    """As oslo.context has it."""

    def to_dict(self) -> dict[str, Any]:
        return {"user": "ada", "auth_token": "s3cr3t"}

    def redacted_copy(self) -> Any:
        copy = Context()
        copy.to_dict = lambda: {"user": "ada"}  # type: ignore[method-assign]
        return copy


def test_a_context_is_sent_without_what_it_redacts(transport: msgbus.Transport, notifier: msgbus.Notifier) -> None:
    """A context that knows what others must not see is sent without that."""
    endpoint = Endpoint()
    with listening(transport, endpoint):
        notifier.info(Context(), "e", None)
        assert endpoint.next()[1] == {"user": "ada"}
        notifier.info(None, "e", None)
        assert endpoint.next()[1] == {}


def test_a_serializer_turns_context_and_payload_into_plain_data(transport: msgbus.Transport) -> None:
    """And the listener's undoes it."""

    class Upper(msgbus.NoOpSerializer):
        def serialize_entity(self, ctxt: Any, entity: Any) -> Any:
            return entity.upper()

        def deserialize_entity(self, ctxt: Any, entity: Any) -> Any:
            return f"<{entity}>"

    endpoint = Endpoint()
    with listening(transport, endpoint, serializer=Upper()):
        msgbus.Notifier(transport, driver="messagingv2", serializer=Upper()).info({}, "e", "text")
        assert endpoint.next()[4] == "<TEXT>"


# What is wrong with a notification


def test_what_cannot_be_sent_is_an_error_for_the_caller(notifier: msgbus.Notifier) -> None:
    """A payload, a type or a context that is wrong in itself."""
    wrong: Any = 7
    with pytest.raises(msgbus.SerializationError, match=r"'payload'.*object"):
        notifier.info({}, "e", {"a": object()})
    with pytest.raises(TypeError, match="event_type"):
        notifier.info({}, wrong, {})
    with pytest.raises(TypeError, match="context is missing"):
        notifier.info("e", "payload", {})
    with pytest.raises(msgbus.SerializationError, match="context"):
        notifier.info(wrong, "e", {})


def test_a_notification_that_is_too_large_is_an_error_for_the_caller(caplog: pytest.LogCaptureFixture) -> None:
    """No message system that has this limit would ever take it; the other drivers send it."""
    transport = new_transport(f"{new_url()}?max_message_size=1000")
    notifier = msgbus.Notifier(transport, driver=["messagingv2", "test"])
    with pytest.raises(msgbus.MessageTooLarge, match=r"notifications\.info.*1000 bytes"):
        notifier.info({}, "e", {"a": "x" * 1000})
    assert len(recorded_notifications(transport)) == 1
    assert "was not sent" not in caplog.text
    transport.cleanup()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"driver": "messagin"}, msgbus.DriverLoadFailure, "did you mean 'messaging'"),  # codespell:ignore messagin
        ({"retry": -2}, ValueError, "retry is"),
        ({"retry": "5"}, ValueError, "retry is"),
        ({"topics": "notifications"}, TypeError, r"\['notifications'\]"),
        ({"topics": ["t" * 70]}, msgbus.InvalidTarget, "longer than 75 bytes"),
        ({"topics": [""]}, msgbus.InvalidTarget, "topic must not be empty"),
        ({"topics": ["a", None]}, TypeError, r"\['notifications'\], not \['a', None\]"),
        ({"topics": 7}, TypeError, r"\['notifications'\], not 7"),
        ({"topics": [], "driver": "messaging"}, msgbus.ConfigurationError, "has no topic to send to.* noop"),
        ({"driver": 7}, TypeError, "driver is the name of a driver, .* not 7"),
        ({"driver": ["log", None]}, TypeError, r"driver is the name of a driver, .* not \['log', None\]"),
        ({"publisher_id": 7}, TypeError, "publisher_id"),
        ({"interceptors": print}, TypeError, "list of functions"),
    ],
)
def test_wrong_arguments_are_refused(
    transport: msgbus.Transport, options: Any, error: type[Exception], text: str
) -> None:
    """When the notifier is made, and the text says what would be right."""
    with pytest.raises(error, match=text):
        msgbus.Notifier(transport, **options)


def test_a_url_is_no_transport() -> None:
    """Its password is not shown."""
    url: Any = "rabbit://guest:s3cr3t@h/"
    with pytest.raises(TypeError, match="first argument of a notifier") as caught:
        msgbus.Notifier(url)
    assert "s3cr3t" not in str(caught.value)


# What the message system does


def test_what_is_not_taken_is_logged_and_not_raised(caplog: pytest.LogCaptureFixture) -> None:
    """What the notification is about has happened all the same."""
    url = new_url()
    transport = new_transport(url)
    get_bus(url).fail_next(msgbus.TransportBlocked("disk alarm"), count=1)
    notifier = msgbus.Notifier(transport, driver="messagingv2", retry=0)
    notifier.info({}, "order.created", {})
    assert "a notification of order.created (INFO) was not sent" in caplog.text
    assert "disk alarm" in caplog.text
    transport.cleanup()


@pytest.mark.parametrize(("retry", "arrives"), [(0, False), (1, False), (2, True)])
def test_retry_says_how_often_it_is_sent_again(
    retry: int, arrives: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also 0, of the notifier itself and of a prepared one."""
    monkeypatch.setattr("msgbus.notify.sending.RETRY_PAUSE", 0.001)
    url = new_url()
    transport = new_transport(url)
    plain = msgbus.Notifier(transport, driver="messagingv2", retry=retry)
    prepared = msgbus.Notifier(transport, driver="messagingv2").prepare(retry=retry)
    endpoint = Endpoint()
    with listening(transport, endpoint):
        for notifier in (plain, prepared):
            caplog.clear()
            get_bus(url).fail_next(msgbus.TransportUnavailable("broken", maybe_delivered=True), count=2)
            notifier.info({}, "e", {})
            assert ("was not sent" in caplog.text) is not arrives
            get_bus(url).fail_next(msgbus.TransportBlocked("not used"), count=0)
            get_bus(url)._errors.clear()
            if arrives:
                assert endpoint.events(1) == ["e"]
    transport.cleanup()


def test_by_default_it_is_sent_until_it_is_taken() -> None:
    """Within ``rpc_response_timeout``."""
    url = new_url()
    transport = new_transport(url)
    endpoint = Endpoint()
    with listening(transport, endpoint):
        get_bus(url).fail_next(msgbus.TransportBlocked("alarm"), count=3)
        msgbus.Notifier(transport, driver="messagingv2").info({}, "e", {})
        assert endpoint.events(1) == ["e"]
    transport.cleanup()


def test_the_time_for_sending_ends(caplog: pytest.LogCaptureFixture) -> None:
    """A message system that is away does not keep the caller for ever, whatever ``retry`` says."""
    url = new_url()
    transport = new_transport(url, rpc_response_timeout=0.2)
    get_bus(url).stop()
    msgbus.Notifier(transport, driver="messagingv2").info({}, "e", {})
    assert "was not sent" in caplog.text
    transport.cleanup()


def test_nobody_to_hear_it_is_said_once(caplog: pytest.LogCaptureFixture, tmp_path: pathlib.Path) -> None:
    """On a message system that stores nothing, a notification that nobody hears is dropped: one warning each level."""
    transport = new_transport(f"zmq://{tmp_path}")
    caplog.set_level(logging.DEBUG, "msgbus.notify")
    notifier = msgbus.Notifier(transport, driver="messagingv2")
    for _ in range(3):
        notifier.info({}, "e", {})
    notifier.error({}, "e", {})
    found = [record for record in caplog.records if "nobody listens" in record.getMessage()]
    assert [record.levelname for record in found] == ["WARNING", "DEBUG", "DEBUG", "WARNING"]
    transport.cleanup()


def test_each_topic_that_nobody_hears_is_named(caplog: pytest.LogCaptureFixture, tmp_path: pathlib.Path) -> None:
    """By the one warning that there is for a level."""
    transport = new_transport(f"zmq://{tmp_path}")
    msgbus.Notifier(transport, driver="messagingv2", topics=["a", "b"]).info({}, "e", {})
    (warning,) = [record.getMessage() for record in caplog.records if "nobody listens" in record.getMessage()]
    assert "a.info" in warning
    assert "b.info" in warning
    transport.cleanup()


def test_each_topic_that_fails_is_known_and_the_others_are_sent(caplog: pytest.LogCaptureFixture) -> None:
    """A line of the log for each: with what the message system says, or an interceptor raises."""

    def refuse(request: msgbus.InterceptedRequest, proceed: msgbus.Proceed) -> Any:
        if request.target.topic == "c.info":
            raise LookupError("no token for c")
        return proceed(request)

    url = new_url()
    transport = new_transport(url)
    endpoint = Endpoint()
    with listening(transport, endpoint, targets=[msgbus.Target(topic="d")]):
        get_bus(url).fail_next(msgbus.TransportBlocked("disk alarm"), count=2)
        topics = ["a", "b", "c", "d"]
        notifier = msgbus.Notifier(transport, driver="messagingv2", retry=0, topics=topics, interceptors=[refuse])
        notifier.info({}, "order.created", {})
        assert endpoint.events(1) == ["order.created"]
    lines = [record.getMessage() for record in caplog.records if "was not sent" in record.getMessage()]
    assert ["a.info" in lines[0], "b.info" in lines[1], "no token for c" in lines[2]] == [True] * 3
    assert len(lines) == 3
    transport.cleanup()


def test_of_several_faults_the_first_is_raised_and_the_others_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Too large for one topic and for the other: both are known. What has the same text twice is said once."""
    transport = new_transport(f"{new_url()}?max_message_size=1000")
    notifier = msgbus.Notifier(transport, driver=["messagingv2", "test"], topics=["a", "b"])
    with pytest.raises(msgbus.MessageTooLarge, match=r"a\.info"):
        notifier.info({}, "e", {"a": "x" * 1000})
    (line,) = [record.getMessage() for record in caplog.records if "was not sent" in record.getMessage()]
    assert "b.info" in line
    assert len(recorded_notifications(transport)) == 1
    caplog.clear()
    with pytest.raises(msgbus.SerializationError):
        notifier.info({}, "e", {"a": object()})
    assert caplog.text == ""
    transport.cleanup()


def test_no_driver_sends_nothing(transport: msgbus.Transport) -> None:
    """It says so, as with ``noop``; payloads need not be made then."""
    for driver in ([], "noop", ["noop"]):
        notifier = msgbus.Notifier(transport, driver=driver)
        assert not notifier.is_enabled()
        notifier.info({}, "e", {})
    assert msgbus.Notifier(transport, driver=["noop", "log"]).is_enabled()


def test_one_driver_that_fails_does_not_keep_others_from_sending(caplog: pytest.LogCaptureFixture) -> None:
    """Each of several has it."""
    url = new_url()
    transport = new_transport(url)
    get_bus(url).fail_next(msgbus.TransportBlocked("alarm"))
    notifier = msgbus.Notifier(transport, driver=["messagingv2", "test"], retry=0)
    notifier.info({}, "e", {"a": 1})
    (kept,) = recorded_notifications(transport)
    assert (kept.priority, kept.message["event_type"], kept.message["payload"]) == ("info", "e", {"a": 1})
    assert "was not sent" in caplog.text
    transport.cleanup()


def test_the_driver_test_keeps_notifications_for_each_transport(transport: msgbus.Transport) -> None:
    """A test finds what its own transport has sent."""
    other = new_transport()
    msgbus.Notifier(transport, "p", driver="test", retry=3).warn({"user": "u"}, "e", 1)
    assert recorded_notifications(other) == []
    (kept,) = recorded_notifications(transport)
    assert (kept.ctxt, kept.priority, kept.retry, kept.message["publisher_id"]) == ({"user": "u"}, "warn", 3, "p")
    recorded_notifications(transport).clear()
    assert recorded_notifications(transport) == []
    other.cleanup()


def test_the_driver_log_writes_a_line_without_secrets(
    transport: msgbus.Transport, caplog: pytest.LogCaptureFixture
) -> None:
    """The logger has the event's type in its name, the level is that of the notification, and no text forges a line."""
    caplog.set_level(logging.DEBUG, "msgbus.notification")
    notifier = msgbus.Notifier(transport, driver="log")
    payload = {"admin_password": "s3cr3t", "users": [{"authToken": "s3cr3t", "name": "a\nb"}], "id": 7}
    notifier.error({"token": "s3cr3t"}, "order.created", payload)
    notifier.sample({}, "order.seen", 1)
    first, second = caplog.records
    assert (first.name, first.levelname) == ("msgbus.notification.order.created", "ERROR")
    assert json.loads(first.getMessage())["payload"]["id"] == 7
    assert "s3cr3t" not in caplog.text
    assert "\n" not in first.getMessage()
    assert (second.name, second.levelname) == ("msgbus.notification.order.seen", "INFO")


# Options


def test_options_name_drivers_topics_and_the_message_system(tmp_path: pathlib.Path) -> None:
    """Those of ``[oslo_messaging_notifications]``, as a file for oslo.messaging has them."""
    url = new_url()
    conf = conf_from_file(
        tmp_path,
        f"[DEFAULT]\ntransport_url = fake://elsewhere/\n[oslo_messaging_notifications]\ntransport_url = {url}\n"
        "driver = messagingv2\ndriver = test\ntopics = a,b\nretry = 0\n",
    )
    transport = msgbus.get_notification_transport(conf)
    assert str(transport.url).startswith(url.rstrip("/"))
    notifier = msgbus.Notifier(transport)
    assert notifier.retry == 0
    assert notifier.prepare(retry=None).retry == 0
    endpoint = Endpoint()
    with listening(transport, endpoint, targets=[msgbus.Target(topic="a"), msgbus.Target(topic="b")]):
        notifier.info({}, "e", {})
        assert endpoint.events(2) == ["e", "e"]
    assert len(recorded_notifications(transport)) == 1
    transport.cleanup()


def test_without_a_url_of_their_own_notifications_go_where_requests_go(tmp_path: pathlib.Path) -> None:
    """``transport_url`` of DEFAULT; an argument wins over both."""
    conf = conf_from_file(tmp_path, "[DEFAULT]\ntransport_url = fake://both/\n")
    transport = msgbus.get_notification_transport(conf)
    assert str(transport.url) == "fake://both/"
    other = msgbus.get_notification_transport(conf, "fake://given/")
    assert str(other.url) == "fake://given/"
    transport.cleanup()
    other.cleanup()


@pytest.mark.parametrize(
    ("line", "text"), [("retry = often", "retry of [oslo_messaging_notifications]"), ("retry = -2", "retry of")]
)
def test_a_wrong_value_is_an_error_that_names_the_option(tmp_path: pathlib.Path, line: str, text: str) -> None:
    """And the file."""
    conf = conf_from_file(tmp_path, f"[DEFAULT]\ntransport_url = fake://\n[oslo_messaging_notifications]\n{line}\n")
    transport = msgbus.get_notification_transport(conf)
    with pytest.raises(msgbus.ConfigurationError) as caught:
        msgbus.Notifier(transport)
    assert text in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    transport.cleanup()


def test_a_misspelt_option_is_warned_of(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    """An option that other code has in the group is not."""
    text = "[DEFAULT]\ntransport_url = fake://\n[oslo_messaging_notifications]\ntopcis = a\nmine = 1\n"
    msgbus.get_notification_transport(conf_from_file(tmp_path, text)).cleanup()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "there is no option topcis of [oslo_messaging_notifications]; did you mean topics?" in warnings[0]


def test_options_of_oslo_messaging_itself_are_shared() -> None:
    """A program that has both libraries on one configuration may use both."""
    from oslo_config import cfg

    conf = new_conf()
    group = "oslo_messaging_notifications"
    conf.register_opt(cfg.ListOpt("topics", default=["theirs"], deprecated_name="x"), group=group)
    transport = msgbus.get_notification_transport(conf, new_url())
    endpoint = Endpoint()
    with listening(transport, endpoint, targets=[msgbus.Target(topic="theirs")]):
        msgbus.Notifier(transport, driver="messaging").info({}, "e", {})
        assert endpoint.events(1) == ["e"]
    transport.cleanup()


# Interceptors


def test_interceptors_are_around_each_message(transport: msgbus.Transport) -> None:
    """They see the message, and what they put into the metadata reaches those of the listener."""
    seen: list[tuple[Any, ...]] = []

    def sign(request: msgbus.InterceptedRequest, proceed: msgbus.Proceed) -> Any:
        seen.append((request.kind, request.method, request.target.topic, request.args["event_type"]))
        request.metadata["token"] = "x"
        request.context["tenant"] = "t1"
        return proceed(request)

    def check(request: msgbus.InterceptedRequest, proceed: msgbus.Proceed) -> Any:
        seen.append((request.kind, request.metadata, request.target.topic, request.args["event_type"]))
        request.args["payload"] = {"changed": True}
        return proceed(request)

    endpoint = Endpoint()
    with listening(transport, endpoint, interceptors=[check]):
        msgbus.Notifier(transport, driver="messagingv2", interceptors=[sign]).info({}, "e", {})
        _, ctxt, _, _, payload, _ = endpoint.next()
    assert (ctxt, payload) == ({"tenant": "t1"}, {"changed": True})
    assert seen == [
        ("notification", "", "notifications.info", "e"),
        ("notification", {"token": "x"}, "notifications.info", "e"),
    ]


def test_what_an_interceptor_changes_concerns_one_message(transport: msgbus.Transport) -> None:
    """And not those to the next topic, or by the next driver."""
    seen: list[dict[str, Any]] = []

    def sign(request: msgbus.InterceptedRequest, proceed: msgbus.Proceed) -> Any:
        seen.append(dict(request.context))
        request.context["topic"] = request.target.topic
        return proceed(request)

    notifier = msgbus.Notifier(transport, driver=["messagingv2", "test"], topics=["a", "b"], interceptors=[sign])
    notifier.info({"user": "ada"}, "e", {})
    assert seen == [{"user": "ada"}] * 2
    (kept,) = recorded_notifications(transport)
    assert kept.ctxt == {"user": "ada"}


def test_an_interceptor_may_answer_in_the_place_of_the_endpoints(transport: msgbus.Transport) -> None:
    """Nothing is called then, and the notification is handled."""
    passed = []

    def drop(request: msgbus.InterceptedRequest, proceed: msgbus.Proceed) -> Any:
        passed.append(request.args["event_type"])
        return None if request.args["event_type"] == "bad" else proceed(request)

    endpoint = Endpoint()
    notifier = msgbus.Notifier(transport, driver="messagingv2")
    with listening(transport, endpoint, interceptors=[drop]):
        notifier.info({}, "bad", {})
        until(lambda: passed, "the first has come")
        notifier.info({}, "good", {})
        assert endpoint.events(1) == ["good"]
    assert passed == ["bad", "good"]


def test_current_request_tells_an_endpoint_of_its_notification(transport: msgbus.Transport) -> None:
    """Its id, topic and context; it has no method."""
    found = []

    class Asking:
        def info(self, *_args: Any) -> None:
            found.append(msgbus.current_request())

    with listening(transport, Asking()):
        msgbus.Notifier(transport, driver="messagingv2").info({"user": "ada"}, "e", {})
        until(lambda: found, "it was called")
    (request,) = found
    assert (request.topic, request.method, request.context) == ("notifications.info", "", {"user": "ada"})
    assert (request.redelivered, request.attempts, request.time_left) == (False, 1, None)
    assert len(request.request_id) == 32


def test_a_listener_and_a_notifier_are_shown_without_secrets(
    transport: msgbus.Transport, notifier: msgbus.Notifier
) -> None:
    """What they are, and over what."""
    listener = msgbus.get_notification_listener(transport, [TARGET], [Endpoint()], pool="p")
    assert "the listener for notifications, pool p, not serving" in repr(listener)
    assert "'orders.host1', by messagingv2" in repr(notifier)
