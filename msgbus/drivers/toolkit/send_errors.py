"""Errors for messages that could not be sent, or whose outcome is unknown: what their sender gets."""

from __future__ import annotations

from typing import Protocol

from msgbus.drivers.base import Address, Message
from msgbus.exceptions import MessageDeliveryFailure, MessagingException, TransportBlocked, TransportUnavailable


class Names(Protocol):
    """How a driver describes its message system in errors."""

    def name(self) -> str:
        """The message system: host, port and user."""

    def why_away(self) -> str:
        """Why messages cannot be sent at present, if nothing is known to block them."""

    def why_blocked(self) -> str | None:
        """Why the message system takes no messages although the connection lives, or None."""


def not_confirmed(names: Names, address: Address) -> MessagingException:
    """A message was sent, and the message system has not answered in time."""
    if (reason := names.why_blocked()) is not None:
        text = f"{names.name()} accepts no messages ({reason}): to {address}"
        return TransportBlocked(text, maybe_delivered=True)
    return TransportUnavailable(f"{names.name()} did not confirm a message to {address} in time", maybe_delivered=True)


def not_declared(names: Names, address: Address) -> MessagingException:
    """What has to be there before a message is sent was not declared in time."""
    return TransportUnavailable(f"{names.name()} did not declare {address} in time")


def not_sent(names: Names, address: Address, message: Message) -> MessagingException:
    """A message could not be sent in time."""
    seconds = message.publish_within or 0.0
    if (reason := names.why_blocked()) is not None:
        text = f"{names.name()} accepts no messages ({reason}), and did not for {seconds:.3g} s: to {address}"
        return TransportBlocked(text)
    return TransportUnavailable(f"gave up after {seconds:.3g} s: {names.why_away()}")


def cut_off(address: Address, error: TransportUnavailable) -> MessagingException:
    """The connection has broken after a message was sent, and before the message system's answer."""
    text = f"the connection broke while a message to {address} was being sent: {error}"
    return TransportUnavailable(text, maybe_delivered=True)


def as_our_error(error: BaseException, address: Address) -> MessagingException:
    """The msgbus error for an exception while a message was written, or its address was declared."""
    if isinstance(error, MessagingException):
        return error
    return MessageDeliveryFailure(f"a message to {address} cannot be written: {error!r}")
