from __future__ import annotations

import pathlib
import traceback

import pytest
from oslo_config import cfg

from msgbus import (
    ConfigurationError,
    MessagingTimeout,
    Target,
    configuration,
    get_rpc_client,
    get_rpc_server,
    get_rpc_transport,
)
from tests.support import conf_from_file, new_conf


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rpc_backend", "zmq"),
        ("transport_url", None),
        ("rpc_response_timeout", 60.0),
        ("control_exchange", "msgbus"),
        ("executor_thread_pool_size", 64),
        ("rpc_delivery", "at_most_once"),
        ("rpc_codec", "json"),
        ("rpc_send_window", 1000),
        ("rpc_reply_grace", 10.0),
        ("rpc_cast_retries", 3),
        ("rpc_ping_enabled", True),
        ("rpc_built_in_methods", ["describe", "stats"]),
    ],
)
def test_core_defaults(name: str, value: object) -> None:
    """The core's options have the defaults that the documentation promises."""
    assert new_conf()[name] == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rpc_response_timeout", 0),
        ("rpc_response_timeout", "nan"),
        ("executor_thread_pool_size", 0),
        ("rpc_prefetch", 0),
        ("rpc_prefetch", 65_536),
        ("rpc_delivery", "exactly_once"),
        ("rpc_codec", "pickle"),
        ("rpc_send_window", 0),
        ("rpc_reply_grace", -1),
        ("rpc_reply_grace", "nan"),
        ("rpc_cast_retries", -1),
    ],
)
def test_core_options_refuse_nonsense(name: str, value: object, tmp_path: pathlib.Path) -> None:
    """An invalid value is refused when a transport or a server is made, with the option and the file."""
    conf = conf_from_file(tmp_path, f"[DEFAULT]\n{name} = {value}\n")
    configuration.register(conf)
    with pytest.raises(ConfigurationError, match=rf"^option {name} of \[DEFAULT\] in {tmp_path}/service.conf: "):
        configuration.read_option(conf, name)
    with pytest.raises(ConfigurationError, match=rf"^option {name} of "):  # not only when it is needed
        get_rpc_server(get_rpc_transport(conf, "fake://"), Target(topic="t", server="s"), [])


def test_register_again() -> None:
    """The options can be registered on a configuration any number of times."""
    conf = new_conf(control_exchange="mine")
    configuration.register(conf)
    assert conf.control_exchange == "mine"


def test_old_name_of_the_pool_size(tmp_path: pathlib.Path) -> None:
    """The pool's size is read under its old name too."""
    conf = conf_from_file(tmp_path, "[DEFAULT]\nrpc_thread_pool_size = 7\n")
    configuration.register(conf)
    assert conf.executor_thread_pool_size == 7


def test_option_that_somebody_else_has_registered() -> None:
    """Theirs counts, with its default: oslo.messaging's transport_url, or a service's own control_exchange."""
    conf = cfg.ConfigOpts()
    conf.register_opt(cfg.StrOpt("control_exchange", default="nova", help="nova's own"))
    configuration.register(conf)
    assert (conf.control_exchange, conf.rpc_response_timeout) == ("nova", 60)


@pytest.mark.parametrize(
    "line",
    [
        "transport_url = rabbit://app:pa$swordPW@h/",
        "transport_url = rabbit://app:pa${swordPW}@h/",
        "transport_url = $transport_url",
        "rpc_backend = $swordPW",
        "rpc_send_window = $swordPW",
        "control_exchange = half$swordPW",
        "rpc_response_timeout = $rpc_response_timeout",
    ],
)
def test_dollar_sign_in_a_core_option(line: str, tmp_path: pathlib.Path) -> None:
    """It is our error, which names the option and the file, says how to write it, and shows no part of a password."""
    name = line.partition(" ")[0]
    with pytest.raises(ConfigurationError, match=rf"^option {name} of \[DEFAULT\] in .*service.conf.*\$\$") as caught:
        get_rpc_transport(conf_from_file(tmp_path, f"[DEFAULT]\n{line}\n"))
    assert "swordPW" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("password", ["pa$$sword", "pa%24sword"])
def test_dollar_sign_that_is_written_as_the_error_says(password: str, tmp_path: pathlib.Path) -> None:
    """Doubled or percent-encoded it is an ordinary character of a password in a transport URL."""
    conf = conf_from_file(tmp_path, f"[DEFAULT]\ntransport_url = fake://app:{password}@h/\n")
    transport = get_rpc_transport(conf)
    assert transport.url.hosts[0].password == "pa$sword"
    transport.cleanup()


def test_configuration_that_nobody_has_read() -> None:
    """To forget the call of `conf` would silently leave out every file; the error says what to do."""
    with pytest.raises(ConfigurationError, match=r"never read: call conf\(...\) first"):
        get_rpc_transport(cfg.ConfigOpts())


def test_configuration_that_a_program_fills_in_itself() -> None:
    """A program that sets the transport URL needs no file, and one that passes it needs no configuration at all."""
    conf = cfg.ConfigOpts()
    configuration.register(conf)
    conf.set_override("transport_url", "fake://own/")
    for transport in (get_rpc_transport(conf), get_rpc_transport(cfg.ConfigOpts(), "fake://own/")):
        assert str(transport.url) == "fake://own/"
        transport.cleanup()


def test_option_that_somebody_else_has_registered_with_another_type() -> None:
    """Its value is read as ours: a text that is a number is converted, and any other text is our error."""
    conf = cfg.ConfigOpts()
    conf.register_opt(cfg.StrOpt("rpc_response_timeout", default="2.5", help="somebody's"))
    conf.register_opt(cfg.IntOpt("rpc_prefetch", default=0, help="somebody's"))
    conf.register_opt(cfg.StrOpt("control_exchange", help="somebody's, without a default"))
    configuration.register(conf)
    assert configuration.read_option(conf, "rpc_response_timeout") == 2.5
    assert configuration.read_option(conf, "control_exchange") == "msgbus"
    with pytest.raises(ConfigurationError, match=r"option rpc_prefetch of \[DEFAULT\]"):
        configuration.read_option(conf, "rpc_prefetch")


def test_option_that_changes_while_a_transport_lives() -> None:
    """What is made from then on goes by the new value."""
    conf = new_conf(rpc_response_timeout=3)
    transport = get_rpc_transport(conf, "fake://")
    assert transport.option("rpc_response_timeout") == 3
    conf.set_override("rpc_response_timeout", 0.5)
    client = get_rpc_client(transport, Target(topic="t"))
    transport.driver.subscribe([transport.address(client.target)], lambda _delivery: None, prefetch=1)
    with pytest.raises(MessagingTimeout, match=r"within 0\.5 s"):
        client.call({}, "m")
    transport.cleanup()
