from __future__ import annotations

import logging
import pathlib

import pytest
from oslo_config import cfg

from msgbus import get_rpc_transport
from msgbus.transport import Transport


def transport_of(path: pathlib.Path, url: str | None, *groups: str) -> Transport:
    """That of a service which has registered options in groups of its own."""
    conf = cfg.ConfigOpts()
    for group in groups:
        conf.register_opt(cfg.BoolOpt("ssl"), group=group)
    conf([], project="service", default_config_files=[str(path)], default_config_dirs=[])
    return get_rpc_transport(conf, url)


def logged_of(
    tmp_path: pathlib.Path, lines: str, caplog: pytest.LogCaptureFixture, url: str | None = "rabbit://h", *groups: str
) -> list[str]:
    """What is logged where a service makes two transports."""
    caplog.set_level(logging.WARNING, "msgbus.unread")
    path = tmp_path / "service.conf"
    path.write_text(lines)
    for _ in range(2):
        transport_of(path, url, *groups).cleanup()
    found = [record.getMessage() for record in caplog.records if record.name == "msgbus.unread"]
    assert all(text.startswith(f"{path}: ") for text in found)
    return [text.removeprefix(f"{path}: ") for text in found]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            "[oslo_messaging_rabbit]\nssl = true\nrabbit_password = s3cr3t\nx = 1\n",
            "the group [oslo_messaging_rabbit] is not read: for rabbit_password, ssl write password, ssl in "
            "[msgbus_kombu]",
        ),
        (
            "[oslo_messaging_amqp]\nssl_ca_file = /x\n",
            "the group [oslo_messaging_amqp] is not read: for ssl_ca_file write ssl_ca_file in [msgbus_qpid]",
        ),
        (
            "[oslo_messaging_zmq]\nrpc_zmq_matchmaker = redis\n",
            "the group [oslo_messaging_zmq] is not read: for rpc_zmq_matchmaker write matchmaker in [msgbus_zmq]",
        ),
        (
            "[matchmaker_redis]\nhost = h\nport = 1\n",
            "the group [matchmaker_redis] is not read: for host, port write redis_url in [msgbus_zmq]",
        ),
        (
            "[default]\ntransport_url = rabbit://u:s3cr3t@h\nrabbit_use_ssl = true\nx = 1\n",
            "the group [default] is not read: write [DEFAULT], in capital letters, for rabbit_use_ssl, transport_url",
        ),
        ("[DEFAULT]\nssl = true\nport = 7\n", "ssl of [DEFAULT] is not read: it belongs in [msgbus_kombu]"),
    ],
)
def test_what_is_meant_for_us_and_not_read_is_named_once(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, lines: str, expected: str
) -> None:
    """The operator learns what to write instead, in one line however many transports there are, without a value."""
    assert logged_of(tmp_path, lines, caplog) == [expected]
    assert "s3cr3t" not in caplog.text


@pytest.mark.parametrize(
    "lines",
    [
        "[oslo_messaging_rabbit]\nx = 1\n",
        "[oslo_messaging_kafka]\nssl_cafile = /x\n",
        "[Default]\nx = 1\n",
        "[DEFAULT]\nrabbit_use_ssl = true\nport = 7\n",
        "[ssl]\nca_file = /x\n[database]\nssl = true\n",
    ],
)
def test_what_is_of_no_concern_to_us(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, lines: str) -> None:
    """A file is shared with others, and what is read under an old name counts."""
    assert logged_of(tmp_path, lines, caplog) == []


def test_group_that_the_service_itself_uses(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    """The code that registered it reads it: oslo.messaging, in a service that uses both."""
    lines = "[oslo_messaging_rabbit]\nssl = true\n"
    assert logged_of(tmp_path, lines, caplog, "rabbit://h", "oslo_messaging_rabbit") == []


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            "[DEFAULT]\nrabbit_host = mq1\nrabbit_use_ssl = true\n",
            "rabbit_host, rabbit_use_ssl has no effect, since the driver is zmq: set rpc_backend = kombu",
        ),
        (
            "[msgbus_qpid]\nhosts = mq1\n",
            "[msgbus_qpid] has no effect, since the driver is zmq: set rpc_backend = qpid",
        ),
    ],
)
def test_message_system_that_is_described_and_not_chosen(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, lines: str, expected: str
) -> None:
    """Where nobody says which driver to use it is zmq: a file that is all about another one is a mistake."""
    assert logged_of(tmp_path, lines, caplog, None) == [expected]
    caplog.clear()
    assert logged_of(tmp_path, f"{lines}\n[DEFAULT]\nrpc_backend = zmq\n", caplog, None) == []
