"""TransportURL: which driver, which hosts, and how.

``driver://[user:password@]host[:port][,[user:password@]host[:port]...][/virtual_host][?option=value&...]``
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, unquote, urlencode

from msgbus.exceptions import ConfigurationError, InvalidTransportURL

if TYPE_CHECKING:
    from oslo_config import cfg

_SCHEME = re.compile(r"([a-z][a-z0-9_.-]*)(?:\+[a-z0-9_.+-]*)?://(.*)", re.IGNORECASE | re.DOTALL)
_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%a-z]+\]|[^:\[\]]*)(?::(?P<port>[0-9]*))?")

# Up to three characters are shown, so that a typo in a port can be seen.
_NO_PORT = re.compile(r"(:(?![0-9]{1,5}(?:[,/?]|$))|\?)(?=.{4}).*", re.DOTALL)
_ESCAPE = "a password's own @ , / ? are written %40 %2C %2F %3F, also in the value of an option"


def mask(text: str) -> str:
    """Return a URL that could not be read without what may be a part of a password.

    That is all before its last ``@``. Where there is none, it is what follows a colon and is no port, since somebody
    may have left the host out, and what follows a question mark, which a password may hold.
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
        transport: the driver's name.
        virtual_host: the path without its first slash; None where there is none.
        hosts: in the order in which they are tried first.
        query: options of the driver. A name that is given twice keeps both values, joined by a comma.
    """

    transport: str
    virtual_host: str | None = None
    hosts: tuple[TransportHost, ...] = ()
    query: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, conf: cfg.ConfigOpts, url: str | None = None) -> TransportURL:
        """Read a URL; None means the one that the configuration gives.

        Without a ``transport_url`` in the configuration, ``rpc_backend`` names the driver and its defaults do the rest.

        Raises:
            InvalidTransportURL: no scheme, a port that is none, a host name that is none; the text says which.
            ConfigurationError: neither ``transport_url`` nor ``rpc_backend`` says anything.
        """
        if url is None:
            url = conf.transport_url or f"{backend_name(conf.rpc_backend)}://"
            if url == "://":
                raise ConfigurationError("the option rpc_backend is empty: it names the driver, for example kombu")
        if not isinstance(url, str):
            raise InvalidTransportURL(repr(url), f"a transport URL is a string, not {type(url).__name__}")
        match = _SCHEME.fullmatch(url)
        if match is None:
            raise InvalidTransportURL(mask(url), "a transport URL begins with DRIVER://, for example rabbit://")
        transport, rest = match.groups()
        _refuse_ambiguous(rest, url)
        rest, _, query = rest.partition("?")
        # A password may hold a slash that nobody escaped; the path begins behind the last @.
        credentials, at, hosts = rest.rpartition("@")
        hosts, slash, path = hosts.partition("/")
        return cls(
            transport=transport.lower(),
            virtual_host=unquote(path) if slash else None,
            hosts=tuple(parse_host(text, url) for text in (credentials + at + hosts).split(",") if text),
            query=_parse_query(query, url),
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
            texts.append(f"{user}@{host}" if user else str(host))
        path = quote(self.virtual_host or "", safe="")
        query = f"?{urlencode(shown_query, safe='*')}" if self.query else ""
        return f"{self.transport}://{','.join(texts)}/{path}{query}"


def _refuse_ambiguous(rest: str, url: str) -> None:
    """Refuse what looks like hosts or options, and may be a piece of a password that was not escaped.

    Hosts and names of options are shown in errors and logs, and a wrong host would be sent the rest of the password.

    Raises:
        InvalidTransportURL: it is ambiguous.
    """
    before, _, query = rest.partition("?")
    has_login, has_host = "@" in before, not before.startswith(("/", "?")) and before != ""
    for option in query.split("&"):
        # The value of an option may be a URL with a log-in of its own.
        if "@" in option and ("://" not in option.partition("@")[0] or (has_host and not has_login)):
            raise InvalidTransportURL(mask(url), f"an @ stands behind the question mark: {_ESCAPE}")
    logins = before.rpartition("@")[0].split(",")
    if len(logins) > 1 and "@" not in logins[0] and ":" in logins[0]:
        why = "the first host has a port and no user, and a later one has a user: write a user before the first too"
        raise InvalidTransportURL(mask(url), f"{why}; {_ESCAPE}")
    users = [login.rpartition("@")[2] for login in logins[1:]]
    if ":" in logins[0].partition("@")[0] and any(":" not in user for user in users):
        raise InvalidTransportURL(mask(url), f"the first user has a password, and a later one has none; {_ESCAPE}")


def backend_name(rpc_backend: str) -> str:
    """The driver's name for a value of ``rpc_backend``, which may be an old module path ending in ``impl_NAME``."""
    last = rpc_backend.rpartition(".")[2]
    return last.removeprefix("impl_")


def parse_host(text: str, url: str) -> TransportHost:
    """Read ``[USER:PASSWORD@]HOST[:PORT]``, which is a part of `url`.

    Raises:
        InvalidTransportURL: a port that is none, a host name that is none.
    """
    user, at, address = text.rpartition("@")
    match = _HOST.fullmatch(address)
    masked = mask(url)
    if match is None or any(c.isspace() for c in address):
        # Where a password holds a comma or question mark that nobody escaped, this is a piece of it.
        shown = repr(address) if address in masked else "what stands before the last @"
        raise InvalidTransportURL(masked, f"{shown} is no host name (an IPv6 address goes in brackets)")
    port = match["port"]
    if port and not 0 < int(port) < 65536:
        shown = port if port in masked else "what stands before the last @"
        raise InvalidTransportURL(masked, f"{shown} is no port")
    username, colon, password = user.partition(":")
    return TransportHost(
        hostname=match["host"].strip("[]") or None,
        port=int(port) if port else None,
        username=unquote(username) if at else None,
        password=unquote(password) if colon else None,
    )


def _parse_query(query: str, url: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError:
        raise InvalidTransportURL(mask(url), "the part behind the question mark is not option=value&...") from None
    found: dict[str, str] = {}
    for name, value in pairs:
        found[name] = f"{found[name]},{value}" if name in found else value
    return found
