"""How the settings of a service reach msgbus's drivers."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
from oslo_config import cfg

import msgbus.oslo.settings
from msgbus import ConfigurationError
from msgbus.oslo.settings import Settings, read_settings
from tests.oslo.support import Service, conf_of, oslo_messaging
from tests.support import new_url

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def settings_of(url: str, conf: cfg.ConfigOpts | None = None) -> Settings:
    """What a service's driver is made from."""
    conf = conf or conf_of()
    return read_settings(conf, oslo_messaging.TransportURL.parse(conf, url))


@pytest.fixture(autouse=True)
def _named_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test sees the lines that are written once in a process."""
    monkeypatch.setattr(msgbus.oslo.settings, "_named", set())


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("msgbus+zmq://", "zmq:///"),
        ("msgbus+rabbit://", "kombu"),
        ("msgbus+rabbit://u:p%2Fw@h:1,v:q@[::1]:2/vhost", "rabbit://u:***@h:1,v:***@[::1]:2/vhost?topology=oslo"),
        ("msgbus+rabbit://u:p@h//", "rabbit://u:***@h/%2F?topology=oslo"),
        ("msgbus+rabbit://u:p@h/?topology=native", "rabbit://u:***@h/?topology=native"),
        ("msgbus+rabbits://u:p@h/", "rabbit://u:***@h/?topology=oslo&ssl=true"),
        ("msgbus+nats://h/", "nats://h/"),
    ],
)
def test_urls_are_read_as_oslo_messaging_does(url: str, masked: str) -> None:
    """Hosts, log-ins, virtual host and options stay as they are; what is behind the plus names the driver."""
    found = settings_of(url).url
    if masked == "kombu":
        masked = "rabbit:///?topology=oslo"
    assert str(found) == masked
    if "%2F" in url:
        assert found.hosts[0].password == "p/w"


FILE = """
[oslo_messaging_rabbit]
heartbeat_timeout_threshold = 7
rabbit_qos_prefetch_count = 11
rabbit_retry_interval = 2
kombu_missing_consumer_retry_timeout = 5
rabbit_login_method = PLAIN
ssl = true
ssl_ca_file = /ca
heartbeat_rate = 2
kombu_reconnect_delay = 3
"""


def test_options_of_oslo_messaging_are_mapped(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    """Those that have a meaning; the others are named in the log, once."""
    settings_of("msgbus+rabbit://h/", conf_of(FILE, tmp_path))
    found = settings_of("msgbus+rabbit://h/", conf_of(FILE, tmp_path))
    assert found.url.query == {
        "heartbeat": "7",
        "login_method": "PLAIN",
        "ssl": "true",
        "ssl_ca_file": "/ca",
        "topology": "oslo",
    }
    assert (found.prefetch, found.retry_interval, found.reply_timeout) == (11, 2, 5)
    (line,) = [record.getMessage() for record in caplog.records if "have no effect" in record.getMessage()]
    assert "heartbeat_rate, kombu_reconnect_delay" in line


def test_they_may_stand_in_the_url_too(caplog: pytest.LogCaptureFixture) -> None:
    """Where they win over the file."""
    found = settings_of("msgbus+rabbit://h/?heartbeat_timeout_threshold=0&heartbeat_rate=2&max_message_size=4096")
    assert found.url.query == {"heartbeat": "0", "max_message_size": "4096", "topology": "oslo"}
    assert "heartbeat_rate" in caplog.text


@pytest.mark.parametrize(("count", "prefetch"), [(-1, 64), (0, 64), (1, 1), (65_535, 65_535), (65_536, 65_535)])
def test_the_prefetch_is_one_that_rabbitmq_takes(count: int, prefetch: int) -> None:
    """oslo.messaging takes any number; without a limit it is the default of this driver."""
    assert settings_of(f"msgbus+rabbit://h/?rabbit_qos_prefetch_count={count}").prefetch == prefetch


def test_and_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As oslo.config reads it."""
    monkeypatch.setenv("OS_OSLO_MESSAGING_RABBIT__HEARTBEAT_TIMEOUT_THRESHOLD", "9")
    monkeypatch.setenv("OS_MSGBUS_KOMBU__CONNECT_TIMEOUT", "3")
    conf = conf_of()
    assert settings_of("msgbus+rabbit://h/", conf).url.query["heartbeat"] == "9"
    assert conf.msgbus_kombu.connect_timeout == 3


def test_the_drivers_own_group_wins_over_that_of_oslo_messaging(tmp_path: pathlib.Path) -> None:
    """It says what it says for this driver alone."""
    text = FILE + "[msgbus_kombu]\nheartbeat = 3\ntopology = native\n"
    found = settings_of("msgbus+rabbit://h/", conf_of(text, tmp_path))
    assert "heartbeat" not in found.url.query
    assert "topology" not in found.url.query


def test_settings_of_tls_without_tls_are_left_out(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    """oslo.messaging does not look at them then; a driver of msgbus would refuse them."""
    text = "[oslo_messaging_rabbit]\nssl_ca_file = /ca\n"
    assert settings_of("msgbus+rabbit://h/", conf_of(text, tmp_path)).url.query == {"topology": "oslo"}
    assert "ssl_ca_file (ssl is off)" in caplog.text
    assert settings_of("msgbus+rabbits://h/", conf_of(text, tmp_path)).url.query["ssl_ca_file"] == "/ca"
    text += "[msgbus_kombu]\nssl = true\n"
    assert settings_of("msgbus+rabbit://h/", conf_of(text, tmp_path)).url.query["ssl_ca_file"] == "/ca"


@pytest.mark.parametrize(("value", "is_on"), [("1", True), ("YES", True), ("on", True), ("0", False), ("no", False)])
def test_tls_is_on_as_the_url_says(tmp_path: pathlib.Path, value: str, is_on: bool) -> None:
    """In every way to write it, and also where the driver's own group says otherwise."""
    text = f"[oslo_messaging_rabbit]\nssl_ca_file = /ca\n[msgbus_kombu]\nssl = {str(not is_on).lower()}\n"
    query = settings_of(f"msgbus+rabbit://h/?ssl={value}", conf_of(text, tmp_path)).url.query
    assert query.get("ssl_ca_file") == ("/ca" if is_on else None)


def test_a_wrong_value_of_ssl_is_named() -> None:
    """And not taken for on or off."""
    with pytest.raises(ConfigurationError, match=r"ssl in transport_url.*perhaps"):
        settings_of("msgbus+rabbit://h/?ssl=perhaps")


def test_stock_declarations_have_no_effect_with_the_native_topology(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says so, and the service starts; those of TLS are mapped all the same."""
    text = "[oslo_messaging_rabbit]\namqp_durable_queues = true\nssl = true\nssl_ca_file = /ca\n"
    found = settings_of("msgbus+rabbit://h/?topology=native", conf_of(text, tmp_path))
    assert found.url.query == {"topology": "native", "ssl": "true", "ssl_ca_file": "/ca"}
    assert "amqp_durable_queues (topology is native)" in caplog.text


@pytest.mark.parametrize(
    ("query", "group", "stock"),
    [("", "", True), ("", "oslo", True), ("", "native", False), ("native", "oslo", False), ("oslo", "native", True)],
)
def test_names_are_those_of_the_topology_in_effect(tmp_path: pathlib.Path, query: str, group: str, stock: bool) -> None:
    """The URL wins over the driver's own group, and that over the default, which is stock."""
    text = f"[msgbus_kombu]\ntopology = {group}\n" if group else "[DEFAULT]\n"
    url = f"msgbus+rabbit://h/?topology={query}" if query else "msgbus+rabbit://h/"
    assert settings_of(url, conf_of(text, tmp_path)).stock_names is stock


def load_failure(url: str, conf: cfg.ConfigOpts | None = None) -> str:
    """The text of the error that oslo.messaging raises."""
    with pytest.raises(oslo_messaging.DriverLoadFailure) as caught:
        oslo_messaging.get_rpc_transport(conf or conf_of(), url)
    return str(caught.value)


def test_what_is_wrong_is_a_load_failure() -> None:
    """With the text of msgbus, and no password."""
    assert "did you mean max_message_size" in load_failure(f"msgbus+{new_url()}?max_mesage_size=5")
    assert "no such driver is installed" in load_failure("msgbus+rabit://u:secret@h/")
    assert "for example msgbus+rabbit://" in load_failure("msgbus://u:secret@h/")
    text = load_failure("msgbus+rabbit://u:secret@h/?conect_timeout=3")
    assert "did you mean connect_timeout" in text
    assert "secret" not in text


def test_a_service_registers_its_options_before_and_after(service: Service) -> None:
    """None of the core's options is registered on its configuration: their definitions would differ."""
    conf = conf_of()
    url = f"msgbus+{new_url()}"
    oslo_messaging.get_rpc_transport(conf, url).cleanup()
    conf.register_opt(cfg.IntOpt("rpc_prefetch", default=5, help="the service's own"))
    conf.register_opt(cfg.BoolOpt("rpc_backend", help="the service's own"))
    oslo_messaging.get_rpc_transport(conf, url).cleanup()
    assert service is not None


@pytest.mark.parametrize(("retry", "seconds"), [(None, None), (-1, None), (0, 1.0), (3, 4.0)])
def test_retries_are_seconds(service: Service, retry: int | None, seconds: float | None) -> None:
    """As many tries, of which each counts as the interval between two."""
    driver: Any = service.transport()._driver
    assert driver._send_timeout(retry) == seconds
