"""No password shows up in what is printed, logged or raised."""

from __future__ import annotations

import pickle
import traceback
from random import Random

import pytest

from msgbus import (
    ConfigurationError,
    InvalidTransportURL,
    MessagingException,
    TransportHost,
    TransportURL,
    get_rpc_transport,
)
from tests.support import new_conf, new_transport

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    "url",
    [
        f"fake://user:{SECRET}@h:1/v?max_message_size=5",
        f"fake://user:{SECRET}@h1,other:{SECRET}@h2/",
        f"fake://user:x/{SECRET}@h/v",
        f"fake://user:x@{SECRET}@h/v",
        f"fake://user:%2F%3F%40{SECRET}@h/v",
        f"fake://:{SECRET}@h",
    ],
)
def test_url_and_transport_texts(url: str) -> None:
    """Neither str, repr nor format of a URL, a host or a transport shows a password, and `unmasked` does."""
    parsed = TransportURL.parse(new_conf(), url)
    transport = new_transport(url)
    texts = [str(parsed), repr(parsed), f"{parsed}", str(parsed.hosts), repr(transport), str(transport)]
    texts += [text for host in parsed.hosts for text in (str(host), repr(host))]
    texts.append(transport.driver.state)
    transport.cleanup()
    assert not [text for text in texts if SECRET in text]
    assert SECRET in parsed.unmasked()


def test_a_url_in_an_option_of_a_url() -> None:
    """The password of a URL that is the value of an option is not shown either, by the URL, a transport, an error."""
    url = f"zmq://?matchmaker=redis&redis_url=redis://user:{SECRET}@h:1/2"
    parsed = TransportURL.parse(new_conf(), url)
    transport = new_transport(url)
    texts = [str(parsed), repr(parsed), repr(transport), transport.driver.state]
    transport.cleanup()
    with pytest.raises(MessagingException) as caught:
        get_rpc_transport(new_conf(), url + "&matchmakr=redis")
    texts += [str(caught.value), repr(caught.value), repr(vars(caught.value))]
    assert not [text for text in texts if SECRET in text]
    assert TransportURL.parse(new_conf(), parsed.unmasked()).query == parsed.query


@pytest.mark.parametrize(
    "url", [f"redis://user:{SECRET}/x@h:1", f"http://:{SECRET}@h", f"redis://:{SECRET}@h:x/", SECRET]
)
def test_error_texts_of_a_url_in_an_option(url: str) -> None:
    """The error for one that cannot be read shows nothing of it."""
    with pytest.raises(ConfigurationError, match=r"redis_url of .* is invalid") as caught:
        get_rpc_transport(new_conf(), f"zmq://?matchmaker=redis&redis_url={url}")
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_host_texts() -> None:
    """A host that was made by hand hides its password too."""
    host = TransportHost("h", 1, "u", SECRET)
    assert SECRET not in str(host) + repr(host)
    assert host.password == SECRET


@pytest.mark.parametrize(
    "url",
    [
        f"user:{SECRET}@h/v",
        f"fake:/user:{SECRET}@h/v",
        f"fake//user:{SECRET}@h/v",
        f"1fake://user:{SECRET}@h/v",
        f" fake://user:{SECRET}@h/v",
        f"fake://user:{SECRET}@h:99999/v",
        f"fake://user:{SECRET}@h:x/v",
        f"fake://user:{SECRET}@a b/v",
        f"fake://user:{SECRET}@[::1/v",
        f"fake://user:{SECRET}@h/v?novalue",
        f"fake://user:{SECRET}@h/v?max_mesage_size=1",
        f"fake://user:{SECRET}@h/v?max_message_size=x",
        f"fake://user@h/v?passwd={SECRET}",
        f"nosuch://user:{SECRET}@h/v",
        # Characters in the password that ought to have been escaped.
        f"fake://user:{SECRET},x@h/v",
        f"fake://user:{SECRET}?x@h/v",
        f"fake://user:{SECRET}#x@h:x/v",
        f"fake://user:[{SECRET},x@h/v",
        f"fake://user:x,{SECRET} y@h/v",
        f"fake://user:@{SECRET} y,z@h/v",
    ],
)
def test_error_texts_of_urls(url: str) -> None:
    """The error for a URL that is malformed, or has a wrong driver or option, shows no part of the password."""
    with pytest.raises(MessagingException) as caught:
        get_rpc_transport(new_conf(), url)
    error = caught.value
    shown = [str(error), repr(error), repr(error.args), repr(vars(error))]
    assert not [text for text in shown if SECRET in text]
    assert SECRET.encode() not in pickle.dumps(error)


@pytest.mark.parametrize("port", [99999, 12345])
def test_digits_of_a_password_before_a_comma(port: int) -> None:
    """Digits of a password that an unescaped comma makes look like a port are not shown when that is no port."""
    with pytest.raises(InvalidTransportURL) as caught:
        TransportURL.parse(new_conf(), f"fake://user:{port},a b@h c/v")
    assert str(port) not in str(caught.value)


def test_traceback_of_a_wrong_url_shows_no_chain_with_the_password() -> None:
    """No exception that is chained to the error has the password in its text either."""
    with pytest.raises(InvalidTransportURL) as caught:
        TransportURL.parse(new_conf(), f"fake://user:{SECRET}@h/?novalue")
    assert SECRET not in "".join(traceback.format_exception_only(caught.value))
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_configured_url_is_a_secret_option() -> None:
    """oslo.config masks the transport URL when it logs the configuration."""
    conf = new_conf(transport_url=f"fake://user:{SECRET}@h/v")
    logged: list[str] = []

    class Log:
        def log(self, level: int, msg: object, *args: object) -> None:
            logged.append(str(msg) % args if args else str(msg))

    conf.log_opt_values(Log(), 10)
    assert any("transport_url" in line for line in logged)
    assert not [line for line in logged if SECRET in line]


DELIMITERS = "/?#@,:[]%&= "


def urls_with_wild_passwords(seed: int) -> list[str]:
    """URLs whose passwords hold delimiters that are not escaped."""
    random = Random(seed)
    made = []
    for _ in range(400):
        pieces = [random.choice([SECRET, SECRET, "12", "x", ""]) for _ in range(random.randint(1, 4))]
        password = "".join(piece + random.choice(DELIMITERS) for piece in pieces) + random.choice([SECRET, ""])
        scheme = random.choice(["fake", "rabbit", "zmq", "rabbits", "nosuch"])
        tail = random.choice(
            ["@h", "@h:1/v", "@h1,h2/", "@h/?max_message_size=5", "@h/?nosuch=1", "@h:x", "@", "@[::1"]
        )
        made.append(f"{scheme}://{random.choice(['u', ''])}:{password}{tail}")
    return made


@pytest.mark.parametrize("seed", range(5))
def test_no_error_about_a_url_holds_a_piece_of_its_password(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever delimiters a password holds that nobody has escaped, no error's text, cause or log line holds it."""
    refused = 0
    for url in urls_with_wild_passwords(seed):
        conf = new_conf()
        try:
            get_rpc_transport(conf, url).cleanup()
        except MessagingException as exc:
            refused += 1
            text = "".join(traceback.format_exception(exc, chain=True)[-1:]) + repr(exc) + repr(vars(exc))
            while exc.__cause__ is not None:
                exc = exc.__cause__  # type: ignore[assignment]
                text += f"{exc} {exc!r}"
            assert SECRET[:4] not in text, url
        assert SECRET[:4] not in caplog.text, url
    assert refused > 20


@pytest.mark.parametrize(
    "url",
    [
        f"rabbit://u:12?{SECRET}=x@h",
        f"rabbit://u:12,{SECRET}@h",
        f"rabbit://u:p@1?{SECRET}@h",
        f"rabbit://u:12?{SECRET}=a://b@h",
        f"rabbit://u:p@1,{SECRET}@h",
        f"rabbit://u:{SECRET}",
        f"rabbit://u:12{SECRET}/v",
        f"rabbit://u:1/{SECRET}?x@h",
        f"rabbit://u:x/{SECRET}",
        f"u:{SECRET}",
        f"rabbit:u:{SECRET}@h",
    ],
)
def test_what_may_be_a_piece_of_a_password_is_refused_and_not_shown(url: str) -> None:
    """A URL that may be read in two ways, since its password is not escaped, is refused without showing it."""
    with pytest.raises(InvalidTransportURL) as caught:
        get_rpc_transport(new_conf(), url)
    assert SECRET[:4] not in str(caught.value) + repr(caught.value) + repr(vars(caught.value))
