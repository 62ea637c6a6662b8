from __future__ import annotations

import logging
import pathlib

import pytest
from oslo_config import cfg

from msgbus import get_rpc_transport


def logged_of(tmp_path: pathlib.Path, lines: str, caplog: pytest.LogCaptureFixture, *opts: cfg.Opt) -> list[str]:
    """What is logged where a service with options of its own makes a transport."""
    caplog.set_level(logging.WARNING, "msgbus.misspelt")  # whatever a command that ran in this process has set
    path = tmp_path / "service.conf"
    path.write_text(lines)
    conf = cfg.ConfigOpts()
    conf.register_opts(opts)
    conf.register_opts(opts, group="msgbus_of_mine")
    conf([], default_config_files=[str(path)], default_config_dirs=[])
    get_rpc_transport(conf, "fake://").cleanup()
    return [record.getMessage().removeprefix(f"{path}: ") for record in caplog.records if "did you" in record.msg]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("[DEFAULT]\ntransprot_url = fake://\n", ["there is no option transprot_url; did you mean transport_url?"]),
        ("[msgbus_rabbit]\nhosts = a\n", ["there is no group [msgbus_rabbit]; did you mean [msgbus_kombu]?"]),
        ("[MSGBUS_AMQP]\nhosts = a\n", ["there is no group [MSGBUS_AMQP]; did you mean [msgbus_kombu]?"]),
        ("[msgbus_zmg]\nlisten = a\n", ["there is no group [msgbus_zmg]; did you mean [msgbus_zmq]?"]),
        ("[DEFAULT]\nrpc_response_timeouts = 3\nrabbit_host = a\nlog_file = a\n[msgbus_kombu]\nhosts = a\n", []),
        ("[msgbus_of_mine]\nx = 1\n[database]\ntransprot_url = a\n[kombu]\nhosts = a\n", []),
    ],
)
def test_name_that_is_nearly_ours_is_warned_of(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, lines: str, expected: list[str]
) -> None:
    """A service that silently does without what its operator wrote is hard to understand; its own options are known."""
    assert logged_of(tmp_path, lines, caplog, cfg.StrOpt("rpc_response_timeouts")) == expected


def test_option_without_an_equals_sign(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    """The colon of the URL then counts as one: the option is not set, and the password not logged."""
    caplog.set_level(logging.WARNING, "msgbus.misspelt")
    path = tmp_path / "service.conf"
    path.write_text("[DEFAULT]\ntransport_url rabbit://app:s3cr3t@h/\n")
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[str(path)], default_config_dirs=[])
    get_rpc_transport(conf, "fake://").cleanup()
    assert f"{path}: there is no = right after transport_url" in caplog.text
    assert "s3cr3t" not in caplog.text


def test_group_that_could_be_any_driver_s(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    """It begins as ours do, and is near none: all are named."""
    (line,) = logged_of(tmp_path, "[msgbus]\nhosts = a\n", caplog)
    assert "[msgbus_fake] or [msgbus_kombu]" in line
