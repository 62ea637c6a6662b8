from __future__ import annotations

import pathlib
from typing import Any

import pytest
from oslo_config import cfg

from msgbus import (
    ConfigurationError,
    InvalidTransportURL,
    TransportURL,
    configuration,
    get_rpc_transport,
    options,
)
from msgbus.drivers.fake import FakeDriver
from msgbus.drivers.kombu import KombuDriver
from msgbus.options import list_opts, read_driver_options
from tests.support import PROTON, conf_from_file, new_conf

OPTS = [
    cfg.IntOpt("retry_delay", default=5, min=1),
    cfg.StrOpt("topology", default="native", choices=("native", "oslo")),
    cfg.BoolOpt("use_tls", default=False),
    cfg.ListOpt("names", default=[]),
    cfg.FloatOpt("seconds", default=1.0, min=0.0),
]


def read(url: str = "fake://", conf: cfg.ConfigOpts | None = None) -> Any:
    """Read the options of a driver that has `OPTS`."""
    conf = conf or new_conf()
    return read_driver_options(conf, "msgbus_test", OPTS, TransportURL.parse(conf, url))


def read_from(where: str, name: str, value: str, folder: pathlib.Path) -> Any:
    """Read the options with one of them set in the URL, or in a file."""
    if where == "url":
        return read(f"fake://?{name}={value}")
    return read(conf=conf_from_file(folder, f"[msgbus_test]\n{name} = {value}\n"))


def test_every_option_has_help() -> None:
    """An operator finds an explanation of every option of the core and of the drivers."""
    for group, opts in list_opts():
        assert [opt.name for opt in opts if not opt.help] == [], group


def test_list_opts_has_the_core_and_every_driver() -> None:
    """oslo-config-generator is given the core's options and those of each installed driver, in its group."""
    found = dict(list_opts())
    assert found[None] == [*configuration.CORE_OPTS, *configuration.RPC_OPTS]
    group, opts = FakeDriver.options()
    assert [opt.name for opt in found[group]] == [opt.name for opt in opts]


@pytest.mark.parametrize(
    ("url", "name", "value"),
    [
        ("fake://", "retry_delay", 5),
        ("fake://?retry_delay=7", "retry_delay", 7),
        ("fake://?topology=oslo", "topology", "oslo"),
        ("fake://?use_tls=yes", "use_tls", True),
        ("fake://?use_tls=0", "use_tls", False),
        ("fake://?names=a,b", "names", ["a", "b"]),
        ("fake://?names=a&names=b", "names", ["a", "b"]),
    ],
)
def test_options_in_the_url(url: str, name: str, value: object) -> None:
    """Each option of a driver can be set in the URL, and is read as its type says."""
    assert getattr(read(url), name) == value


def test_url_wins_over_the_file_and_the_file_over_the_default(tmp_path: pathlib.Path) -> None:
    """The URL's value counts first, then the configuration's."""
    conf = conf_from_file(tmp_path, "[msgbus_test]\nretry_delay = 9\ntopology = oslo\n")
    values = read("fake://?retry_delay=7", conf)
    assert (values.retry_delay, values.topology, values.use_tls) == (7, "oslo", False)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("retry_dealy", "did you mean retry_delay?"),
        ("retrydelay", "did you mean retry_delay?"),
        ("retry-delay", "did you mean retry_delay?"),
        ("use_tsl", "did you mean use_tls?"),
        ("topologie", "did you mean topology?"),
        ("zzz", "there are: names, retry_delay, seconds, topology, use_tls"),
    ],
)
@pytest.mark.parametrize("where", ["url", "file"])
def test_unknown_options_are_refused(name: str, hint: str, where: str, tmp_path: pathlib.Path) -> None:
    """A typo in the URL or in the driver's group of a file is an error that names the nearest option, or them all."""
    with pytest.raises(ConfigurationError) as caught:
        read_from(where, name, "1", tmp_path)
    assert repr(name) in str(caught.value)
    assert hint in str(caught.value)
    assert ("transport URL" if where == "url" else "[msgbus_test]") in str(caught.value)


def test_other_groups_of_a_file_are_others_business(tmp_path: pathlib.Path) -> None:
    """A file is shared with the rest of a service: options of other groups are ignored."""
    conf = conf_from_file(tmp_path, "[DEFAULT]\nretry_dealy = 1\n[other]\nx = 1\n[msgbus_test]\nretry_delay = 2\n")
    assert read(conf=conf).retry_delay == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("retry_delay", "x"),
        ("retry_delay", "0"),
        ("seconds", "nan"),
        ("topology", "star"),
        ("use_tls", "maybe"),
    ],
)
@pytest.mark.parametrize("where", ["url", "file"])
def test_wrong_values_are_refused(name: str, value: str, where: str, tmp_path: pathlib.Path) -> None:
    """A value that does not fit is an error that names the option."""
    with pytest.raises(ConfigurationError, match=f"option {name} of "):
        read_from(where, name, value, tmp_path)


def test_deprecated_names_in_a_file(tmp_path: pathlib.Path) -> None:
    """A driver's option is found in a file under the name that it used to have."""
    conf = conf_from_file(tmp_path, "[msgbus_test]\nold_name = 9\n")
    opts = [cfg.IntOpt("new_name", default=5, deprecated_name="old_name")]
    assert read_driver_options(conf, "msgbus_test", opts, TransportURL("fake")).new_name == 9


def test_without_any_file() -> None:
    """A configuration object that was never given a command line has its defaults."""
    conf = cfg.ConfigOpts()
    configuration.register(conf)
    assert read(conf=conf).retry_delay == 5


def test_files_of_a_folder_are_looked_at_too(tmp_path: pathlib.Path) -> None:
    """A typo in a file of a --config-dir is refused as well."""
    (tmp_path / "one.conf").write_text("[msgbus_test]\nretry_dealy = 1\n")
    conf = new_conf("--config-dir", str(tmp_path))
    with pytest.raises(ConfigurationError, match="did you mean retry_delay"):
        read(conf=conf)


@pytest.mark.parametrize("name", ["password", "username", "hosts", "port", "virtual_host"])
def test_what_has_its_place_in_a_url_may_not_stand_elsewhere(name: str) -> None:
    """The error says where it goes, and shows nothing of the URL: it may hold the password."""
    opts = options.connection_opts({}, DEFAULTS)
    with pytest.raises(ConfigurationError, match=rf"^{name} is written before the question mark") as caught:
        read_driver_options(new_conf(), "msgbus_test", opts, TransportURL.parse(new_conf(), f"fake://h/?{name}=hush"))
    assert "hush" not in str(caught.value)


DEFAULTS = {"hosts": ["localhost"], "port": None, "username": "guest", "password": "guest", "virtual_host": "/"}


@pytest.mark.parametrize(
    ("text", "url", "expected"),
    [
        ("", "fake://", ["guest:guest@localhost"]),
        ("", "fake://a:1,b", ["guest:guest@a:1", "guest:guest@b"]),
        ("", "fake://u@a,:p@b", ["u:guest@a", ":p@b"]),
        ("[msgbus_test]\nhosts = a:1,b\nport = 7\nusername = u\npassword = p\n", "fake://", ["u:p@a:1", "u:p@b:7"]),
        (
            "[msgbus_test]\nhosts = a\nport = 7\nusername = u\npassword = p\n",
            "fake://x,y:z@w:9",
            ["u:p@x:7", "y:z@w:9"],
        ),
        ("[DEFAULT]\nold_host = a\nold_port = 7\nold_user = u\n", "fake://", ["u:guest@a:7"]),
        ("[DEFAULT]\nold_hosts = a, [::1]:9\nold_user = u\n", "fake://", ["u:guest@a", "u:guest@[::1]:9"]),
    ],
)
def test_hosts_of_a_url_or_of_the_options(text: str, url: str, expected: list[str], tmp_path: pathlib.Path) -> None:
    """A URL that names hosts wins; else the options, also by their old names; a user is filled in where none is."""
    old = {"hosts": ("old_hosts", "old_host"), "port": ("old_port",), "username": ("old_user",)}
    opts = options.connection_opts(old, DEFAULTS)
    conf = conf_from_file(tmp_path, text)
    parsed = TransportURL.parse(conf, url)
    values = read_driver_options(conf, "msgbus_test", opts, parsed)
    assert [f"{host.username}:{host.password}@{host}" for host in options.hosts_of(values, parsed)] == expected


@pytest.mark.parametrize(
    ("hosts", "text"),
    [("a:b:c", "a:b:c"), ("::1", "brackets"), ("", "is empty"), ("u:secret@a", "username and password")],
)
def test_invalid_hosts_of_the_options_are_refused(hosts: str, text: str, tmp_path: pathlib.Path) -> None:
    """It is an error that says what is wrong, and shows no password."""
    conf = conf_from_file(tmp_path, f"[msgbus_test]\nhosts = {hosts}\n")
    parsed = TransportURL.parse(conf, "fake://")
    values = read_driver_options(conf, "msgbus_test", options.connection_opts({}, DEFAULTS), parsed)
    with pytest.raises(ConfigurationError, match=text) as caught:
        options.hosts_of(values, parsed)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("[msgbus_test]\npassword = half$WORDPW", "password"),
        ("[DEFAULT]\nold_hosts = $old_host:$old_port", "hosts"),
        ("[msgbus_test]\nhosts = $nothing", "hosts"),
    ],
)
def test_dollar_sign_in_a_value(line: str, name: str, tmp_path: pathlib.Path) -> None:
    """It is an error that names the option and says how to write it, without a part of a password."""
    opts = options.connection_opts({"hosts": ("old_hosts", "old_host"), "port": ("old_port",)}, DEFAULTS)
    conf = conf_from_file(tmp_path, f"{line}\n")
    with pytest.raises(ConfigurationError, match=rf"^option {name} .*twice") as caught:
        read_driver_options(conf, "msgbus_test", opts, TransportURL("fake"))
    assert "WORDPW" not in str(caught.value)
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_files_that_were_removed_since_they_were_read(tmp_path: pathlib.Path) -> None:
    """A daemon changes its folder and its user after it has read its configuration: what it has read counts."""
    conf = conf_from_file(tmp_path, "[msgbus_test]\nretry_delay = 9\n")
    for path in tmp_path.iterdir():
        path.unlink()
    assert read(conf=conf).retry_delay == 9


def test_empty_backend() -> None:
    """The error names the option."""
    with pytest.raises(ConfigurationError, match="rpc_backend is empty"):
        TransportURL.parse(new_conf(rpc_backend=""))


def test_old_name_of_another_group_is_refused_in_the_drivers(tmp_path: pathlib.Path) -> None:
    """It would have no effect there."""
    opts = options.connection_opts({"hosts": ("old_host",)}, DEFAULTS)
    conf = conf_from_file(tmp_path, "[msgbus_test]\nold_host = a\n")
    with pytest.raises(ConfigurationError, match="old_host"):
        read_driver_options(conf, "msgbus_test", opts, TransportURL("fake"))


def test_option_of_a_driver_that_somebody_else_has_registered() -> None:
    """The group is the driver's alone: that is our error, which names the option and the group."""
    conf = new_conf()
    conf.register_opt(cfg.StrOpt("retry_delay", help="somebody's"), group="msgbus_test")
    with pytest.raises(ConfigurationError, match=r"option retry_delay of \[msgbus_test\]"):
        read(conf=conf)


def test_option_that_stands_twice_in_a_url() -> None:
    """Only an option that is a list may be given twice; of another nobody could know which value counts."""
    with pytest.raises(ConfigurationError, match="option retry_delay of the transport URL: it is given twice"):
        read("fake://?retry_delay=1&retry_delay=2")
    assert read("fake://?names=a&names=b").names == ["a", "b"]


def test_group_in_capital_letters(tmp_path: pathlib.Path) -> None:
    """oslo.config reads the names of groups in small letters: a wrong option is found in such a one too."""
    assert read(conf=conf_from_file(tmp_path, "[MSGBUS_Test]\nretry_delay = 9\n")).retry_delay == 9
    with pytest.raises(ConfigurationError, match="did you mean retry_delay"):
        read(conf=conf_from_file(tmp_path, "[MSGBUS_Test]\nretry_dealy = 9\n"))


def test_file_that_has_become_malformed_since_it_was_read(tmp_path: pathlib.Path) -> None:
    """Somebody is writing it: what was read counts."""
    conf = conf_from_file(tmp_path, "[msgbus_test]\nretry_delay = 9\n")
    for content in (b"retry", b"\xff = \xff"):
        (tmp_path / "service.conf").write_bytes(content)
        assert read(conf=conf).retry_delay == 9


@pytest.mark.parametrize(
    ("hosts", "text"),
    [("a,,b", "empty host"), ("a, ,b", "empty host"), ("a:7,b,A", "named twice"), ("a,$nothing", "twice")],
)
def test_hosts_of_the_options_follow_the_rules_of_a_url(hosts: str, text: str, tmp_path: pathlib.Path) -> None:
    """What is an error in a URL is one here, also where two hosts are equal only with the option port."""
    conf = conf_from_file(tmp_path, f"[msgbus_test]\nport = 7\nhosts = {hosts}\n")
    with pytest.raises(ConfigurationError, match=text):
        options.hosts_of(
            read_driver_options(conf, "msgbus_test", options.connection_opts({}, DEFAULTS), TransportURL("fake")),
            TransportURL("fake"),
        )


# TLS

TLS_OPTIONS = ["ssl_ca_file=/etc/hostname", "ssl_cert_file=/etc/hostname", "ssl_verify=true", "ssl_verify=false"]


@pytest.mark.parametrize("tls", ["", "ssl = false\n"])
@pytest.mark.parametrize("option", TLS_OPTIONS)
@pytest.mark.parametrize("driver", ["kombu", pytest.param("qpid", marks=PROTON)])
def test_tls_option_without_tls_in_a_file(driver: str, option: str, tls: str, tmp_path: pathlib.Path) -> None:
    """Options of TLS while TLS is off are an error that says what to do: the operator believes that it is on."""
    text = f"[DEFAULT]\nrpc_backend = {driver}\n[msgbus_{driver}]\n{tls}{option}\n"
    name = option.partition("=")[0]
    with pytest.raises(
        ConfigurationError, match=rf"^{name} is set, but TLS is off.* ssl = true in \[msgbus_{driver}\]"
    ):
        get_rpc_transport(conf_from_file(tmp_path, text))
    conf = conf_from_file(tmp_path, text.replace("ssl = false\n", "") + "ssl = true\n")
    get_rpc_transport(conf).cleanup()


@pytest.mark.parametrize("option", [*TLS_OPTIONS, "ssl=false&ssl_verify=true"])
@pytest.mark.parametrize("scheme", ["kombu", "rabbit", "amqp", pytest.param("qpid", marks=PROTON)])
def test_tls_option_without_tls_in_a_url(scheme: str, option: str) -> None:
    """The same in a URL; there also the scheme can turn TLS on."""
    with pytest.raises(ConfigurationError, match="TLS is off"):
        get_rpc_transport(new_conf(), f"{scheme}://h/?{option}")
    secure = f"{scheme}s://h/?{option.removeprefix('ssl=false&')}"
    transport: Any = get_rpc_transport(new_conf(), secure)
    assert ":5671" in transport.driver.state
    assert transport.url.query["ssl"] == "true"
    transport.cleanup()


def test_tls_option_by_an_old_name_or_by_the_program(tmp_path: pathlib.Path) -> None:
    """Wherever it was set. What a program only makes the default is not what an operator has asked for."""
    with pytest.raises(ConfigurationError, match="ssl_ca_file is set, but TLS is off"):
        get_rpc_transport(conf_from_file(tmp_path, "[DEFAULT]\nkombu_ssl_ca_certs = /etc/hostname\n"), "rabbit://h")
    conf = new_conf()
    conf.register_opts(KombuDriver.options()[1], group="msgbus_kombu")
    conf.set_default("ssl_ca_file", "/etc/hostname", group="msgbus_kombu")
    get_rpc_transport(conf, "rabbit://h").cleanup()
    conf.set_override("ssl_ca_file", "/etc/hostname", group="msgbus_kombu")
    with pytest.raises(ConfigurationError, match="ssl_ca_file is set, but TLS is off"):
        get_rpc_transport(conf, "rabbit://h")
    conf.set_override("ssl_ca_file", "", group="msgbus_kombu")
    get_rpc_transport(conf, "rabbit://h").cleanup()


def test_old_option_that_turns_tls_on(tmp_path: pathlib.Path) -> None:
    """rabbit_use_ssl of older systems is read, and counts as ours does."""
    text = "[DEFAULT]\nrabbit_use_ssl = true\nkombu_ssl_ca_certs = /etc/hostname\n"
    transport = get_rpc_transport(conf_from_file(tmp_path, text), "rabbit://h")
    assert ":5671" in transport.driver.state
    transport.cleanup()


def test_key_without_its_certificate() -> None:
    """It would not be shown to anybody."""
    with pytest.raises(ConfigurationError, match=r"ssl_key_file .* without ssl_cert_file"):
        get_rpc_transport(new_conf(), "rabbits://h/?ssl_key_file=/etc/hostname")


def test_backend_that_is_a_scheme_of_tls() -> None:
    """rpc_backend may say it too."""
    transport = get_rpc_transport(new_conf(rpc_backend="amqps"))
    assert ":5671" in transport.driver.state
    transport.cleanup()


def test_scheme_of_tls_that_the_url_contradicts() -> None:
    """One of both is a mistake, and the wrong guess would send passwords in the clear."""
    with pytest.raises(InvalidTransportURL, match="means TLS"):
        get_rpc_transport(new_conf(), "rabbits://h/?ssl=no")


def test_scheme_of_tls_wins_over_a_file(tmp_path: pathlib.Path) -> None:
    """As any option in the URL does."""
    transport = get_rpc_transport(conf_from_file(tmp_path, "[msgbus_kombu]\nssl = false\n"), "rabbits://h")
    assert ":5671" in transport.driver.state
    transport.cleanup()
