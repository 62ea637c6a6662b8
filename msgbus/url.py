"""TransportURL: which driver, which hosts, and how.

``driver://[user:password@]host[:port][,[user:password@]host[:port]...][/virtual_host][?option=value&...]``
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, unquote, urlencode

from msgbus.exceptions import ConfigurationError, InvalidTransportURL

if TYPE_CHECKING:
    from oslo_config import cfg

_SCHEME = re.compile(r"([a-z][a-z0-9_.-]*)(\+[a-z0-9_.+-]*)?://(.*)", re.IGNORECASE | re.DOTALL)
_HOST = re.compile(r"(?P<host>\[[^\[\]]*\]|[^:\[\]]*)(?::(?P<port>[0-9]*))?")
TLS_SCHEMES = {"amqps": "amqp", "kombus": "kombu", "qpids": "qpid", "rabbits": "rabbit"}
"""Schemes that turn TLS on -> the driver's name. ``amqps://host/`` means ``amqp://host/?ssl=true``."""
_HIDDEN = "the part before the last @"

# Up to three characters are shown, so that a typo in a port can be seen.
_NO_PORT = re.compile(r"(:(?![0-9]{1,5}(?:[,/?]|$))|\?)(?=.{4}).*", re.DOTALL)
_ESCAPE = "a password's own @ , / ? are written %40 %2C %2F %3F, also in the value of an option"


def mask(text: str) -> str:
    """Mask whatever may be part of a password in a URL that could not be read.

    That is all before its last ``@``. If there is none, it is what follows a colon and is not a port (the host may have
    been left out), and what follows a question mark (a password may contain one).
    """
    secret, at, rest = text.rpartition("@")
    if not at:
        before, sign, rest = text.rpartition("://")
        return before + sign + _NO_PORT.sub(r"\1***", rest)
    scheme = _SCHEME.fullmatch(secret)
    return f"{secret.partition('://')[0]}://***@{rest}" if scheme else f"***@{rest}"


@dataclass(frozen=True)
class TransportHost:
    """One address of a message system; None stands for what is not given."""

    hostname: str | None = None
    port: int | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        """`host:port`, without credentials."""
        name = self.hostname or ""
        name = f"[{name}]" if ":" in name else name
        return name if self.port is None else f"{name}:{self.port}"


@dataclass(frozen=True)
class TransportURL:
    """A parsed transport URL.

    Its `str` and `repr` show no password; `unmasked` gives the whole.

    Attributes:
        transport: the driver's name. ``amqps``, ``rabbits``, ``kombus`` and ``qpids`` are read as
            the driver without the last letter, with the option ``ssl=true``.
        virtual_host: the path without its first slash; None where there is none.
        hosts: in the order in which they are tried first.
        query: options of the driver. A name that is given twice keeps both values, joined by a comma.
        repeated: the names in the query that are given more than once.
    """

    transport: str
    virtual_host: str | None = None
    hosts: tuple[TransportHost, ...] = ()
    query: dict[str, str] = field(default_factory=dict)
    repeated: frozenset[str] = field(default=frozenset(), repr=False, compare=False)

    @classmethod
    def parse(cls, conf: cfg.ConfigOpts, url: object = None) -> TransportURL:
        """Read a URL; None means the one that the configuration gives. A TransportURL of oslo.messaging is read too.

        Without a ``transport_url`` in the configuration, ``rpc_backend`` names the driver and its defaults do the rest.
        A host without a user and password has those of the host before it. White space around a host, around the
        virtual host and around an option is left out.

        Raises:
            InvalidTransportURL: no scheme, an invalid port or host name, a host that is empty or named twice, white
                space within a part (percent-encoding allows it); the text says which.
            ConfigurationError: neither ``transport_url`` nor ``rpc_backend`` says anything, or they cannot be read.
        """
        if url is None:
            url = _configured(conf)
        stock = sys.modules.get("oslo_messaging.transport")
        if stock is not None and isinstance(url, stock.TransportURL):
            url = str(url)
        if not isinstance(url, str):
            raise InvalidTransportURL(repr(url), f"a transport URL is a string, not {type(url).__name__}")
        match = _SCHEME.fullmatch(url)
        if match is None:
            raise InvalidTransportURL(mask(url), "a transport URL begins with DRIVER://, for example rabbit://")
        transport, suffix, rest = match.groups()
        if suffix:
            raise InvalidTransportURL(
                mask(url),
                f"{transport + suffix!r} is not the name of a driver: leave {suffix!r} out. For TLS write rabbits://, "
                "amqps:// or qpids://, or set the option ssl=true",
            )
        _refuse_ambiguous(rest, url)
        rest, _, query = rest.partition("?")
        # A password may hold a slash that nobody escaped; the path begins behind the last @.
        credentials, at, hosts = rest.rpartition("@")
        hosts, slash, path = hosts.partition("/")
        options, repeated = _parse_query(query, url)
        transport = transport.lower()
        if transport in TLS_SCHEMES:
            if options.setdefault("ssl", "true").lower() not in ("true", "1", "yes", "on"):
                raise InvalidTransportURL(mask(url), f"{transport}:// means TLS, but the option ssl turns it off")
            transport = TLS_SCHEMES[transport]
        return cls(
            transport=transport,
            virtual_host=_decode(path.strip(), "the virtual host", url) if slash else None,
            hosts=_parse_hosts(credentials + at + hosts, url),
            query=options,
            repeated=repeated,
        )

    def unmasked(self) -> str:
        """The URL with its passwords: for handing on, never for a log."""
        return self._format(lambda password: quote(password, safe=""), self.query)

    def __str__(self) -> str:
        # The value of an option may be a URL itself, with a password in it.
        shown = {name: mask(value) if "://" in value else value for name, value in self.query.items()}
        return self._format(lambda _: "***", shown)

    def __repr__(self) -> str:
        return f"<TransportURL {self}>"

    def _format(self, show: Callable[[str], str], shown_query: dict[str, str]) -> str:
        texts = []
        for host in self.hosts:
            user = "" if host.username is None else quote(host.username, safe="")
            if host.password is not None:
                user += f":{show(host.password)}"
            address = str(host).replace("%", "%25")  # the zone of an IPv6 address
            texts.append(f"{user}@{address}" if user else address)
        path = quote(self.virtual_host or "", safe="")
        query = f"?{urlencode(shown_query, safe='*')}" if self.query else ""
        return f"{self.transport}://{','.join(texts)}/{path}{query}"


def _refuse_ambiguous(rest: str, url: str) -> None:
    """Refuse text that looks like hosts or options, but may be a piece of a password that was not escaped.

    Hosts and names of options are shown in errors and logs, and a wrong host would be sent the rest of the password.

    Raises:
        InvalidTransportURL: it is ambiguous.
    """
    before, _, query = rest.partition("?")
    has_login, has_host = "@" in before, not before.startswith(("/", "?")) and before != ""
    for option in query.split("&"):
        # The value of an option may be a URL with a log-in of its own.
        if "@" in option and ("://" not in option.partition("@")[0] or (has_host and not has_login)):
            raise InvalidTransportURL(mask(url), f"there is an @ after the question mark: {_ESCAPE}")
    logins = before.rpartition("@")[0].split(",")
    if len(logins) > 1 and "@" not in logins[0] and ":" in logins[0]:
        why = "the first host has a port and no user, and a later one has a user: write a user before the first too"
        raise InvalidTransportURL(mask(url), f"{why}; {_ESCAPE}")
    # An entry without @, other than the last, is a host with the log-in of the one before it.
    users = [login.rpartition("@")[0] for login in logins[1:-1] if "@" in login] + logins[1:][-1:]
    if ":" in logins[0].partition("@")[0] and any(":" not in user for user in users):
        raise InvalidTransportURL(mask(url), f"the first user has a password, and a later one has none; {_ESCAPE}")


def backend_name(rpc_backend: str) -> str:
    """The driver's name for a value of ``rpc_backend``, which may be an old module path ending in ``impl_NAME``."""
    last = rpc_backend.rpartition(".")[2]
    return last.removeprefix("impl_")


def _configured(conf: cfg.ConfigOpts) -> str:
    from msgbus import configuration

    configuration.register(conf)
    if url := configuration.read_option(conf, "transport_url"):
        return str(url)
    if not (backend := backend_name(configuration.read_option(conf, "rpc_backend"))):
        raise ConfigurationError("the option rpc_backend is empty: it names the driver, for example kombu")
    return f"{backend}://"


def _parse_hosts(text: str, url: str) -> tuple[TransportHost, ...]:
    """Read the hosts of `url`. One that has no log-in has that of the host before it."""
    found: list[TransportHost] = []
    parts = text.split(",") if text.strip() else []
    for part in parts:
        host = parse_host(part, url)
        if host.hostname is None and len(parts) > 1:
            raise InvalidTransportURL(mask(url), "one of the hosts is empty (is there a comma too many?)")
        if found and "@" not in part:
            host = replace(host, username=found[-1].username, password=found[-1].password)
        found.append(host)
    if twice := host_named_twice(found):
        raise InvalidTransportURL(mask(url), f"the host {twice} is named twice")
    return tuple(found)


def host_named_twice(hosts: Sequence[TransportHost]) -> TransportHost | None:
    """The first of `hosts` that has the name, port and user of one before it, or None."""
    seen = set()
    for host in hosts:
        place = ((host.hostname or "").lower(), host.port, host.username)
        if place in seen:
            return host
        seen.add(place)
    return None


def parse_host(text: str, url: str) -> TransportHost:
    """Read ``[USER:PASSWORD@]HOST[:PORT]``, which is a part of `url`.

    Raises:
        InvalidTransportURL: an invalid port or host name, or white space in one of the parts.
    """
    user, at, address = text.strip().rpartition("@")
    match = _HOST.fullmatch(address)
    masked = mask(url)
    hostname = None if match is None else _host_name(match["host"])
    if match is None or hostname is None:
        # Where a password holds a comma or question mark that nobody escaped, this is a piece of it.
        shown = repr(address) if address in masked else _HIDDEN
        raise InvalidTransportURL(masked, f"{shown} is not a host name (write an IPv6 address in brackets)")
    port = match["port"]
    if port and not (len(port) <= 5 and 0 < int(port) < 65536):
        shown = port[:10] if port in masked else _HIDDEN
        raise InvalidTransportURL(masked, f"{shown} is not a port")
    username, colon, password = user.partition(":")
    return TransportHost(
        hostname=hostname or None,
        port=int(port) if port else None,
        username=_decode(username, "a user name", url) if at else None,
        password=_decode(password, "a password", url) if colon else None,
    )


def _host_name(text: str) -> str | None:
    """A host name, or an IPv6 address without its brackets; None where it is neither."""
    if not text.startswith("["):
        return text if all(c.isalnum() or c in "-._" for c in text) else None
    from ipaddress import IPv6Address

    address, percent, zone = text[1:-1].partition("%")
    zone = zone.removeprefix("25") or zone  # RFC 6874 writes the percent sign before the zone as %25.
    try:
        IPv6Address(address + percent + zone)
    except ValueError:
        return None
    return address + percent + zone


def _has_space(text: str) -> bool:
    return any(c.isspace() or not c.isprintable() for c in text)


def _decode(text: str, what: str, url: str) -> str:
    """Undo percent-encoding. `what` is what the text is, for errors: the text itself may be a password."""
    if _has_space(text):
        raise InvalidTransportURL(
            mask(url), f"{what} contains white space or a control character: percent-encode it (a blank is %20)"
        )
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise InvalidTransportURL(
            mask(url), f"the percent-encoding of {what} is not UTF-8 (a percent sign is %25)"
        ) from None


def _parse_query(query: str, url: str) -> tuple[dict[str, str], frozenset[str]]:
    """The options, and the names that are given more than once."""
    query = "&".join(pair.strip() for pair in query.split("&"))
    try:
        if _has_space(query):
            raise ValueError("white space")
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, errors="strict") if query else []
    except ValueError:
        raise InvalidTransportURL(
            mask(url),
            "the part after the question mark is not option=value&... (write a blank as a plus or %20)",
        ) from None
    found: dict[str, str] = {}
    repeated = set()
    for name, value in pairs:
        if name in found:
            repeated.add(name)
        found[name] = f"{found[name]},{value}" if name in found else value
    return found, frozenset(repeated)
