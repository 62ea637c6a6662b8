"""The options of stock oslo.messaging peers: where they are read, and what is refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from oslo_config import cfg

from msgbus import ConfigurationError, get_rpc_transport
from msgbus.drivers.kombu.driver import KombuDriver
from msgbus.drivers.kombu.stock import GROUP, OPTIONS, StockOptions, read_stock_options
from msgbus.options import read_driver_options
from msgbus.url import TransportURL
from tests.support import conf_from_file, new_conf, new_transport

OSLO = "rabbit://localhost/?topology=oslo"
THEIRS = [
    cfg.BoolOpt("amqp_durable_queues", default=False, help="in words of their own"),
    cfg.IntOpt("rabbit_transient_queues_ttl", min=0, default=1800, help="in words of their own"),
    cfg.StrOpt("kombu_compression", help="in words of their own"),
]


def read(conf: cfg.ConfigOpts, query: str = "") -> StockOptions:
    """The options of a driver with this configuration and query."""
    url = TransportURL.parse(conf, f"{OSLO}&{query}" if query else OSLO)
    given = read_driver_options(conf, *KombuDriver.options(), url)
    return read_stock_options(conf, KombuDriver.options()[0], given, url)


def test_the_defaults_are_those_of_the_stock_library() -> None:
    """A peer that sets nothing is like a stock peer that sets nothing."""
    assert vars(read(new_conf())) == {
        "amqp_durable_queues": False,
        "amqp_auto_delete": False,
        "rabbit_quorum_queue": False,
        "rabbit_quorum_delivery_limit": 0,
        "rabbit_quorum_max_memory_length": 0,
        "rabbit_quorum_max_memory_bytes": 0,
        "rabbit_transient_quorum_queue": False,
        "rabbit_transient_queues_ttl": 1800,
        "rabbit_stream_fanout": False,
        "kombu_compression": None,
    }


def test_the_url_wins_over_the_drivers_group_and_that_over_the_stock_librarys(tmp_path: Path) -> None:
    """Each option is taken from the first place that has it, even if it is set to its default there."""
    conf = conf_from_file(
        tmp_path,
        "[msgbus_kombu]\nrabbit_quorum_queue = false\nrabbit_transient_queues_ttl = 20\n"
        f"[{GROUP}]\nrabbit_quorum_queue = true\nrabbit_transient_queues_ttl = 10\namqp_durable_queues = on\n"
        "rabbit_quorum_delivery_limit = 5\nrabbit_quorum_delivery_limit = 6\nkombu_compression =\n",
    )
    found = read(conf, "rabbit_transient_queues_ttl=30")
    assert (found.rabbit_transient_queues_ttl, found.rabbit_quorum_queue) == (30, False)
    assert (found.amqp_durable_queues, found.rabbit_quorum_delivery_limit) == (True, 6)
    assert found.kombu_compression is None


@pytest.mark.parametrize("is_first", [True, False])
def test_the_stock_library_may_register_its_own_definitions(tmp_path: Path, is_first: bool) -> None:
    """Before or after this: neither is an error, and what the program has set by itself is read too."""
    conf = conf_from_file(tmp_path, f"[{GROUP}]\nrabbit_transient_queues_ttl = 10\n")
    if not is_first:
        assert read(conf).rabbit_transient_queues_ttl == 10
    conf.register_opts(THEIRS, group=GROUP)
    conf.set_override("amqp_durable_queues", True, group=GROUP)
    found = read(conf)
    assert (found.rabbit_transient_queues_ttl, found.amqp_durable_queues) == (10, True)


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ("rabbit_transient_queues_ttl = soon", rf"rabbit_transient_queues_ttl of \[{GROUP}\] of .*service.conf"),
        ("amqp_durable_queues = perhaps", rf"amqp_durable_queues of \[{GROUP}\] of .*service.conf"),
        ("kombu_compression = zstd", rf"kombu_compression of \[{GROUP}\] of .*service.conf.*zstd"),
        ("rabbit_stream_fanout = true", "needs rabbit_transient_quorum_queue"),
        ("rabbit_quorum_queue = true\namqp_auto_delete = true", "amqp_auto_delete and rabbit_quorum_queue"),
    ],
)
@pytest.mark.parametrize("is_registered", [True, False])
def test_wrong_values(tmp_path: Path, lines: str, error: str, is_registered: bool) -> None:
    """A value that does not fit, or two that contradict each other, are an error that names them."""
    conf = conf_from_file(tmp_path, f"[{GROUP}]\n{lines}\n")
    if is_registered:
        error = error.replace(" of .*service.conf", "")
        conf.register_opts(THEIRS, group=GROUP)
    with pytest.raises(ConfigurationError, match=error):
        read(conf)


def test_tls_of_the_stock_library_is_not_left_out_silently(tmp_path: Path) -> None:
    """Where it is on for the stock library, messages here do not go without it."""
    conf = conf_from_file(tmp_path, f"[{GROUP}]\nssl = true\n")
    with pytest.raises(ConfigurationError, match=rf"ssl is set in \[{GROUP}\], and not in \[msgbus_kombu\]"):
        read(conf)
    assert read(conf, "ssl=true").rabbit_transient_queues_ttl == 1800


def test_tls_can_be_turned_off_for_this_driver_alone(tmp_path: Path) -> None:
    """The URL and the driver's group override the stock library's group, for ssl as for any other option."""
    theirs = f"[{GROUP}]\nssl = true\n"
    conf = conf_from_file(tmp_path, theirs)
    get_rpc_transport(conf, f"{OSLO}&ssl=false").cleanup()
    conf = conf_from_file(tmp_path, f"{theirs}[msgbus_kombu]\nssl = false\n")
    get_rpc_transport(conf, OSLO).cleanup()


@pytest.mark.parametrize("opt", OPTIONS, ids=lambda opt: opt.dest)
def test_without_the_topology_they_are_refused(opt: cfg.Opt) -> None:
    """Whoever sets one believes that it has an effect."""
    values: dict[type[cfg.Opt], Any] = {cfg.BoolOpt: "true", cfg.IntOpt: "7", cfg.StrOpt: "gzip"}
    with pytest.raises(ConfigurationError, match=f"{opt.dest} is set, .* set topology = oslo"):
        new_transport(f"rabbit://localhost/?{opt.dest}={values[type(opt)]}")


def test_without_the_topology_the_stock_librarys_group_is_not_read(tmp_path: Path) -> None:
    """It may be in the file for services that use the stock library."""
    conf = conf_from_file(tmp_path, f"[{GROUP}]\nrabbit_stream_fanout = perhaps\n")
    get_rpc_transport(conf, "rabbit://localhost/").cleanup()


def test_the_log_names_only_what_is_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The operator learns which options of the stock library's group have no effect."""
    caplog.set_level(logging.WARNING, "msgbus.unread")
    conf = conf_from_file(tmp_path, f"[{GROUP}]\nrabbit_quorum_queue = true\nheartbeat_timeout_threshold = 7\n")
    get_rpc_transport(conf, OSLO).cleanup()
    assert [record.getMessage().partition("service.conf: ")[2] for record in caplog.records] == [
        f"of the group [{GROUP}] only some options are read: for heartbeat_timeout_threshold write heartbeat in "
        "[msgbus_kombu]"
    ]
