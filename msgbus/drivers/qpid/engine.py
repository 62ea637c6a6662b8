"""Proton's protocol engine for one AMQP 1.0 connection: bytes in, bytes out, and callbacks of links.

All use of proton is here, and through its C functions (`cproton`, as Proton-C documents them). Proton's Python classes
cost ten times as much for each message, and release references on any thread, while the engine must be used by one
thread only. Its event loop, `proton.reactor`, is not used: it waits with `select`, which fails above descriptor 1023,
and looks up host names on the thread that serves all links.

Everything here runs on the loop's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import cproton as c

from msgbus.foreign import get_logger

OUTCOMES = ("amqp:accepted:list", "amqp:rejected:list", "amqp:released:list", "amqp:modified:list")
"""The outcomes that the broker may send for a message. A link that lists none of them is closed at the first
rejection."""
MAX_FRAME = 65536
"""Bytes of the largest frame that is accepted."""

FORBIDDEN = ("amqp:unauthorized-access", "amqp:not-allowed")

ACCEPTED: int = c.PN_ACCEPTED
REJECTED: int = c.PN_REJECTED
RELEASED: int = c.PN_RELEASED
MODIFIED: int = c.PN_MODIFIED

_NULL = c.ffi.NULL
_CLOSE_EXISTING = 1

LOG = get_logger(__name__)


class Condition(NamedTuple):
    """Why the other side refused or closed something: a symbol of the protocol, and a text."""

    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.name}: {self.text}" if self.text else self.name

    @property
    def is_forbidden(self) -> bool:
        """Whether the user lacks a right. Qpid does not always use the right symbol for it."""
        return self.name in FORBIDDEN or self.text.startswith("Permission ")


class EngineError(Exception):
    """The connection is unusable."""

    def __init__(self, condition: Condition) -> None:
        super().__init__(condition)
        self.condition = condition


class Link:
    """One AMQP link. Subclasses override the callbacks.

    Attributes:
        attached: both sides have attached it, and neither has detached it.
    """

    attached = False
    _leaving = False
    _engine: Engine
    _link: Any = None

    # What happens

    def on_attached(self) -> None:
        """The other side has attached it too."""

    def on_detached(self, condition: Condition | None) -> None:
        """The other side has refused it, or detached it, for that reason; or it has confirmed a `detach`."""

    def on_flow(self) -> None:
        """The other side has changed the credit."""

    def on_delivery(self, delivery: Any) -> None:
        """A message has come, or the other side has settled one."""

    # What can be done

    @property
    def credit(self) -> int:
        """How many messages may be sent over it at present."""
        credit: int = c.pn_link_credit(self._link)
        return credit

    def detach(self) -> None:
        """Close it. `on_detached` is called when the other side has confirmed that."""
        self.attached = False
        self._leaving = True
        c.pn_link_close(self._link)


class SendingLink(Link):
    """A link to send on, to whatever address a message names (the anonymous relay) or to one node."""

    _tags = 0

    def attach(self, engine: Engine, name: str, target: str | None) -> None:
        """Attach it; None means the relay, in a separate session, whose end does not affect the other links."""
        link = engine.new_link(self, c.pn_sender, name, separate=target is None)
        outcomes = c.pn_terminus_outcomes(c.pn_link_source(link))
        c.pn_data_put_array(outcomes, False, c.PN_SYMBOL)
        c.pn_data_enter(outcomes)
        for outcome in OUTCOMES:
            c.pn_data_put_symbol(outcomes, outcome)
        c.pn_data_exit(outcomes)
        if target is not None:
            c.pn_terminus_set_address(c.pn_link_target(link), target)
        c.pn_link_set_snd_settle_mode(link, c.PN_SND_UNSETTLED)
        c.pn_link_open(link)

    @property
    def max_message_size(self) -> int:
        """Bytes of the largest message that the other side takes; 0: it does not say."""
        size: int = c.pn_link_remote_max_message_size(self._link)
        return size

    def transfer(self, data: bytes) -> Any:
        """Send an encoded message. There has to be credit.

        Returns:
            its delivery, which is passed to `on_delivery` later.
        """
        self._tags += 1
        link = self._link
        delivery = c.pn_delivery(link, self._tags.to_bytes(8, "big"))
        c.pn_link_send(link, data)
        c.pn_link_advance(link)
        return delivery


class ReceivingLink(Link):
    """A link to receive on."""

    _first_credit = 0

    def attach(self, engine: Engine, name: str, source: str | None, credit: int, *, settled: bool) -> None:
        """Attach it.

        Args:
            engine: of the connection.
            name: of the link; unique.
            source: the address to receive from; None lets the other side create a node.
            credit: how many messages may come at first.
            settled: messages count as settled once they are sent.
        """
        link = engine.new_link(self, c.pn_receiver, name)
        terminus = c.pn_link_source(link)
        # A node that is created for this link is deleted with the link, not with the session.
        c.pn_terminus_set_expiry_policy(terminus, c.PN_EXPIRE_WITH_LINK)
        if source is None:
            c.pn_terminus_set_dynamic(terminus, True)
        else:
            c.pn_terminus_set_address(terminus, source)
        c.pn_link_set_snd_settle_mode(link, c.PN_SND_SETTLED if settled else c.PN_SND_UNSETTLED)
        c.pn_link_open(link)
        self._first_credit = credit

    def begin(self) -> None:
        """Give the first credit. Not before it is attached: Qpid ends the session over a frame on a refused link."""
        c.pn_link_flow(self._link, self._first_credit)

    @property
    def source(self) -> str:
        """The address that it receives from, as the other side names it."""
        return str(c.pn_terminus_get_address(c.pn_link_remote_source(self._link)))

    def flow(self, credit: int) -> None:
        """Give credit for that many more messages."""
        c.pn_link_flow(self._link, credit)

    def drain(self) -> None:
        """Take all credit back. `on_flow` is called when the other side has returned it."""
        c.pn_link_drain(self._link, 0)

    def read(self, delivery: Any) -> bytearray | None:
        """The encoded message, or None if a part of it is missing, or it was aborted."""
        if c.pn_delivery_partial(delivery) or not c.pn_delivery_readable(delivery):
            return None
        data: bytearray
        _, data = c.pn_link_recv(self._link, c.pn_delivery_pending(delivery))
        c.pn_link_advance(self._link)
        return data


def settle(delivery: Any, outcome: int | None = None, *, failed: bool = False) -> None:
    """Settle a delivery, of either direction; `failed` is for `MODIFIED`."""
    if outcome is not None:
        if failed:
            c.pn_disposition_set_failed(c.pn_delivery_local(delivery), True)
        c.pn_delivery_update(delivery, outcome)
    c.pn_delivery_settle(delivery)


def was_settled(delivery: Any) -> bool:
    """Whether the other side has settled it."""
    return bool(c.pn_delivery_settled(delivery))


def was_aborted(delivery: Any) -> bool:
    """Whether the other side has aborted it."""
    return bool(c.pn_delivery_aborted(delivery))


def outcome_of(delivery: Any) -> int:
    """The outcome that the other side has sent; 0: none."""
    outcome: int = c.pn_delivery_remote_state(delivery)
    return outcome


def rejection_of(delivery: Any) -> Condition:
    """Why the other side has rejected it."""
    condition = _condition(c.pn_disposition_condition(c.pn_delivery_remote(delivery)))
    return condition or Condition("amqp:rejected", "")


class Engine:
    """One connection."""

    def __init__(self, container: str, hostname: str, idle_timeout: float) -> None:
        """Make it and open it: the first bytes wait to be sent.

        Args:
            container: the name of this side, which distinguishes its links from those of others.
            hostname: the virtual host.
            idle_timeout: seconds; if nothing is received for that long, `tick` ends the connection. 0: never.
        """
        self._links: dict[Any, Link] = {}
        self._relay_session: Any = None
        self._relay_link: Link | None = None
        self._error: Condition | None = None
        self.is_open = False
        self._collector = c.pn_collector()
        self._connection = c.pn_connection()
        self._transport = c.pn_transport()
        c.pn_connection_collect(self._connection, self._collector)
        c.pn_connection_set_container(self._connection, container)
        c.pn_connection_set_hostname(self._connection, hostname)
        c.pn_transport_set_max_frame(self._transport, MAX_FRAME)
        c.pn_transport_set_idle_timeout(self._transport, int(idle_timeout * 1000))
        self._request_sole_connection()
        c.pn_connection_open(self._connection)
        self._session = c.pn_session(self._connection)
        c.pn_session_open(self._session)
        c.pn_transport_bind(self._transport, self._connection)

    def _request_sole_connection(self) -> None:
        """Ask the other side to close an older connection of this container, if it has not noticed that it broke.

        It would still receive messages that are meant for this side, and nobody would read them. (OASIS, AMQP Enforcing
        Connection Uniqueness 1.0, 2.1 and 3.)
        """
        wanted = c.pn_connection_desired_capabilities(self._connection)
        c.pn_data_put_array(wanted, False, c.PN_SYMBOL)
        c.pn_data_enter(wanted)
        c.pn_data_put_symbol(wanted, "sole-connection-for-container")
        c.pn_data_exit(wanted)
        properties = c.pn_connection_properties(self._connection)
        c.pn_data_put_map(properties)
        c.pn_data_enter(properties)
        c.pn_data_put_symbol(properties, "sole-connection-enforcement-policy")
        c.pn_data_put_uint(properties, _CLOSE_EXISTING)
        c.pn_data_exit(properties)

    def leave(self) -> None:
        """Call no link any more."""
        self._links.clear()
        self._relay_link = None

    def free(self) -> None:
        """Free all memory. The engine must not be used afterwards."""
        c.pn_transport_unbind(self._transport)
        c.pn_decref(self._transport)
        c.pn_connection_release(self._connection)
        c.pn_collector_release(self._collector)
        c.pn_collector_free(self._collector)

    def close(self) -> None:
        """Send the AMQP close."""
        c.pn_connection_close(self._connection)

    def new_link(self, link: Link, make: Callable[[Any, str], Any], name: str, *, separate: bool = False) -> Any:
        """Make proton's link for one of ours; `separate`: in the separate session."""
        made = make(self._relay_session_for(link) if separate else self._session, name)
        link._engine = self
        link._link = made
        link.attached = False
        self._links[made] = link
        return made

    def _relay_session_for(self, link: Link) -> Any:
        """The session for the relay, whose end does not affect other links. Reused while it is open."""
        if self._relay_session is None:
            self._relay_session = c.pn_session(self._connection)
            c.pn_session_open(self._relay_session)
        self._relay_link = link
        return self._relay_session

    # Bytes

    def push(self, data: bytes) -> None:
        """Process received bytes.

        Raises:
            EngineError: they are not AMQP.
        """
        view = memoryview(data)
        while view:
            taken = c.pn_transport_push(self._transport, view)
            if taken <= 0:
                raise EngineError(self._transport_error())
            view = view[taken:]

    def pending(self) -> bytes | bytearray:
        """The bytes to send next; empty if there are none."""
        size = c.pn_transport_pending(self._transport)
        if size <= 0:
            return b""
        data: bytearray
        _, data = c.pn_transport_peek(self._transport, size)
        return data

    def sent(self, size: int) -> None:
        """Note that a number of bytes of `pending` have been sent."""
        c.pn_transport_pop(self._transport, size)

    def tick(self, now: float) -> None:
        """Send heartbeats, and notice missing ones. To be called every second with the time of a clock."""
        c.pn_transport_tick(self._transport, int(now * 1000))

    # Events

    def dispatch(self) -> None:
        """Call the links for what has happened.

        Raises:
            EngineError: the connection, or its session, has ended; or an error kept a link from handling an event. The
                link would be out of step then, so the connection has to be given up.
        """
        try:
            self._dispatch_all()
        except EngineError:
            raise
        except Exception as exc:
            LOG.exception("what has come over a connection could not be handled")
            raise EngineError(
                Condition("amqp:internal-error", f"an error on this side, with its traceback in the log: {exc!r}")
            ) from exc

    def _dispatch_all(self) -> None:
        collector, links = self._collector, self._links
        while (event := c.pn_collector_peek(collector)) != _NULL:
            try:
                kind = c.pn_event_type(event)
                if kind == c.PN_DELIVERY:
                    delivery = c.pn_event_delivery(event)
                    link = links.get(c.pn_delivery_link(delivery))
                    if link is not None:
                        link.on_delivery(delivery)
                elif kind == c.PN_LINK_FLOW:
                    if (link := links.get(c.pn_event_link(event))) is not None:
                        link.on_flow()
                elif kind in _LINK_EVENTS:
                    self._on_link_event(kind, c.pn_event_link(event))
                elif kind == c.PN_SESSION_REMOTE_CLOSE:
                    self._on_session_end(c.pn_event_session(event))
                elif kind in _END_EVENTS:
                    self._on_end(kind)
                elif kind == c.PN_CONNECTION_REMOTE_OPEN:
                    self.is_open = True
            finally:
                c.pn_collector_pop(collector)  # Otherwise it would come again with the next call, for ever.

    def _on_link_event(self, kind: int, made: Any) -> None:
        link = self._links.get(made)
        if link is None:
            return
        if kind == c.PN_LINK_REMOTE_OPEN:
            # A link that is refused is first attached without a terminus, then detached with the reason.
            near, far = c.pn_link_source(made), c.pn_link_remote_source(made)
            if c.pn_link_is_sender(made):
                near, far = c.pn_link_target(made), c.pn_link_remote_target(made)
            if c.pn_terminus_get_type(far) == c.PN_UNSPECIFIED and c.pn_terminus_get_type(near) != c.PN_UNSPECIFIED:
                return
            if link._leaving:
                return
            link.attached = True
            if isinstance(link, ReceivingLink):
                link.begin()
            link.on_attached()
            return
        condition = _condition(c.pn_link_remote_condition(made))
        del self._links[made]
        link.attached = False
        c.pn_link_close(made)
        link.on_detached(condition)
        c.pn_link_free(made)

    def _on_session_end(self, session: Any) -> None:
        found = _condition(c.pn_session_remote_condition(session))
        found = found or Condition("amqp:session:closed", "the other side ended the session")
        if session == self._session:
            raise EngineError(found)
        self._relay_session, link = None, self._relay_link
        c.pn_session_close(session)
        if link is not None and self._links.pop(link._link, None) is not None:
            link.attached = False
            link.on_detached(found)
        c.pn_session_free(session)

    def _on_end(self, kind: int) -> None:
        if kind == c.PN_CONNECTION_REMOTE_CLOSE:
            found = _condition(c.pn_connection_remote_condition(self._connection))
            raise EngineError(found or Condition("amqp:connection:closed", "the other side closed the connection"))
        raise EngineError(self._transport_error())

    def _transport_error(self) -> Condition:
        found = _condition(c.pn_transport_condition(self._transport))
        return found or Condition("amqp:connection:framing-error", "the connection was ended")


_LINK_EVENTS = frozenset({c.PN_LINK_REMOTE_OPEN, c.PN_LINK_REMOTE_CLOSE, c.PN_LINK_REMOTE_DETACH})
_END_EVENTS = frozenset({c.PN_CONNECTION_REMOTE_CLOSE, c.PN_TRANSPORT_ERROR, c.PN_TRANSPORT_TAIL_CLOSED})


def _condition(found: Any) -> Condition | None:
    if not c.pn_condition_is_set(found):
        return None
    return Condition(c.pn_condition_get_name(found) or "", c.pn_condition_get_description(found) or "")
