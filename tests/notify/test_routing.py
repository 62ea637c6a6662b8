"""The driver routing: rules in a file."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

import msgbus
from msgbus.notify import recorded_notifications
from tests.notify.support import Endpoint, listening
from tests.support import new_conf, new_url

RULES = """
billing:
  messagingv2:
    accepted_events: ["order.*"]
    accepted_priorities: [INFO, error]
again:
  messagingv2:
    accepted_events: ["order.created"]
  test:
"""


def routed(tmp_path: pathlib.Path, text: str, name: str = "rules.yaml") -> msgbus.Notifier:
    """A notifier by rules, with a transport of its own."""
    path = tmp_path / name
    path.write_text(text)
    conf = new_conf()
    transport = msgbus.get_notification_transport(conf, new_url())
    conf.set_override("routing_config", str(path), group="oslo_messaging_notifications")
    return msgbus.Notifier(transport, driver="routing")


def test_rules_say_which_driver_sends_what(tmp_path: pathlib.Path) -> None:
    """All rules of a driver have to accept it, and of one driver in two groups one; then it is sent once."""
    notifier = routed(tmp_path, RULES)
    endpoint = Endpoint()
    with listening(notifier.transport, endpoint):
        notifier.info({}, "order.created", {})
        notifier.warn({}, "order.paid", {})
        notifier.info({}, "cart.filled", {})
        notifier.error({}, "order.lost", {})
        assert sorted(endpoint.events(2)) == ["order.created", "order.lost"]
    assert endpoint.came.empty()
    kept = [one.message["event_type"] for one in recorded_notifications(notifier.transport)]
    assert kept == ["order.created", "order.paid", "cart.filled", "order.lost"]
    notifier.transport.cleanup()


def test_rules_may_be_json(tmp_path: pathlib.Path) -> None:
    """In a file whose name says so."""
    notifier = routed(tmp_path, json.dumps({"all": {"test": {"accepted_events": ["a*"]}}}), "rules.json")
    notifier.info({}, "abc", {})
    notifier.info({}, "bc", {})
    assert [one.message["event_type"] for one in recorded_notifications(notifier.transport)] == ["abc"]
    notifier.transport.cleanup()


@pytest.mark.parametrize(
    ("text", "name", "says"),
    [
        ("a: {test: {accepted_event: [x]}}", "r.yaml", "unknown field `accepted_event`"),
        ("a: {test: {accepted_events: x}}", "r.yaml", "Expected `array | null`"),
        ("a: {test: {accepted_priorities: [loud]}}", "r.yaml", "accepts the priority 'loud'; there are audit"),
        ("a: [test]", "r.yaml", "Expected `object`"),
        ("a: {routing: }", "r.yaml", "a has the driver routing"),
        ("{", "r.json", "does not hold rules"),
        ("a: [", "r.yaml", "does not hold rules"),
    ],
)
def test_wrong_rules_are_an_error_that_names_the_file(tmp_path: pathlib.Path, text: str, name: str, says: str) -> None:
    """And what is wrong there, when the notifier is made."""
    with pytest.raises(msgbus.ConfigurationError) as caught:
        routed(tmp_path, text, name)
    assert says in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


def test_a_driver_that_does_not_exist_is_an_error(tmp_path: pathlib.Path) -> None:
    """The text names the nearest."""
    with pytest.raises(msgbus.DriverLoadFailure, match="did you mean 'messagingv2'"):
        routed(tmp_path, "a: {messagingv3: }")


@pytest.mark.parametrize(("path", "says"), [("", "needs a file of rules"), ("/nowhere/rules.yaml", "No such file")])
def test_a_missing_file_is_an_error(path: str, says: str) -> None:
    """Otherwise nothing would be sent, and nobody would know."""
    conf = new_conf()
    transport = msgbus.get_notification_transport(conf, new_url())
    conf.set_override("routing_config", path, group="oslo_messaging_notifications")
    with pytest.raises(msgbus.ConfigurationError, match=says):
        msgbus.Notifier(transport, driver="routing")
    transport.cleanup()


def test_without_a_library_for_yaml_the_error_says_what_to_do(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes with oslo.config today; JSON needs none."""

    def missing(*_args: Any, **_kwargs: Any) -> None:
        raise ImportError("no yaml")

    monkeypatch.setattr("msgspec.yaml.decode", missing)
    with pytest.raises(msgbus.ConfigurationError, match="install PyYAML; or write it as JSON"):
        routed(tmp_path, RULES)
