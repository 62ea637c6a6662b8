"""What an address is called on Qpid, and which nodes it needs.

Each exchange of a target is a direct exchange of the broker's, and its topics, servers and fanouts are keys in it.
Every part of a name is escaped as in a URL, with ``=`` for ``%``, since Qpid takes that for the beginning of a format.
So a name has only letters, digits and ``_.-~=``, and no two addresses share one::

    address                  sent to                received from
    topic foo, stored foo    msgbus/foo             the queue msgbus:foo, bound with foo
    server h1 of foo         msgbus/foo:h1          the queue msgbus:foo:h1, bound with foo:h1
    fanout of foo            msgbus/foo:!fanout     msgbus/foo:!fanout: the broker makes a queue for the link
    pool p of foo            -                      the queue msgbus:foo:!pool:p, bound with foo
    dead letters of foo      msgbus:foo:!dead       the queue of that name
    inbox                    msgbus:!inboxes/NAME   the same: the broker makes a queue for the link

A queue that the broker creates for a link is deleted with the link. After a reconnect the new link gets another one
under the same address, so the inbox or fanout is restored.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import quote

from msgbus.drivers.base import Address
from msgbus.exceptions import InvalidTarget

INBOXES = "msgbus:!inboxes"
"""The exchange in which every inbox has a key."""
MAX_NAME = 1024
"""The most bytes of a name. Qpid's own limit is far higher; a longer name is a mistake."""


class Source(NamedTuple):
    """Where a subscribed address is received from.

    Attributes:
        address: of the broker's node.
        exchange: has to exist; or None.
        queue: has to exist; None if the broker creates one for the link.
        key: binds the queue to the exchange.
        kept: the queue is never deleted; otherwise it is deleted with its last consumer.
    """

    address: str
    exchange: str | None = None
    queue: str | None = None
    key: str = ""
    kept: bool = True


class Route(NamedTuple):
    """Where a message to an address goes.

    Attributes:
        to: the broker's address.
        declare: what the sender has to declare, since it has to exist before anybody listens; or None.
    """

    to: str
    declare: Source | None = None


def route(address: Address) -> Route:
    """Where a message to `address` goes.

    Raises:
        InvalidTarget: it cannot be named on Qpid.
    """
    if address.kind == "inbox":
        return Route(f"{INBOXES}/{_checked(_quote(address.name), address)}")
    if address.kind == "dead":
        dead = source(address)
        return Route(dead.address, dead)
    return Route(f"{_exchange(address)}/{_key(address)}", source(address) if address.kind == "stored" else None)


def source(address: Address, *, keep_servers: bool = True, keep_topics: bool = True) -> Source:
    """Where messages to `address` are received from.

    Args:
        address: what is subscribed to.
        keep_servers: the queue of one server outlives it.
        keep_topics: the queue of a topic outlives its last server.

    Raises:
        InvalidTarget: it cannot be named on Qpid.
    """
    if address.kind == "inbox":
        return Source(route(address).to, INBOXES)
    exchange, key = _exchange(address), _key(address)
    if address.kind == "fanout":
        return Source(f"{exchange}/{key}", exchange)
    queue = f"{exchange}:{_quote(address.topic)}"
    if address.kind == "server":
        queue += f":{_quote(address.server)}"
    elif address.kind == "pool":
        queue += f":!pool:{_quote(address.name)}"
    elif address.kind == "dead":
        queue = _checked(f"{queue}:!dead", address)
        return Source(queue, None, queue)
    kept = {"server": keep_servers, "topic": keep_topics}.get(address.kind, True)
    return Source(_checked(queue, address), exchange, queue, key, kept)


def _quote(part: str) -> str:
    return quote(part, safe="").replace("%", "=")


def _checked(name: str, address: Address) -> str:
    if len(name) > MAX_NAME:
        raise InvalidTarget(f"its name on Qpid would be longer than {MAX_NAME} bytes", str(address))
    return name


def _exchange(address: Address) -> str:
    name = _checked(_quote(address.exchange), address)
    if not name or name.startswith(("amq.", "qpid.")):
        raise InvalidTarget("an exchange of Qpid cannot have this name", str(address))
    return name


def _key(address: Address) -> str:
    key = _quote(address.topic)
    if address.kind == "server":
        key = f"{key}:{_quote(address.server)}"
    elif address.kind == "fanout":
        key = f"{key}:!fanout"
    return _checked(key, address)
