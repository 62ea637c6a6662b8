"""``msgbus notify`` and ``msgbus listen``."""

from __future__ import annotations

import threading
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click
import msgspec

from msgbus.cli.connecting import open_transport
from msgbus.cli.options import bus_options, example, json_option
from msgbus.cli.progress import progress
from msgbus.cli.signals import stopped_by_signal
from msgbus.cli.tables import print_json, print_named_value
from msgbus.notify.notification import PRIORITIES

if TYPE_CHECKING:
    from msgbus.notify.filter import NotificationResult

DRAIN = 5.0
"""Seconds that a notification which is being printed has when the command ends."""


def _parse(_ctx: click.Context, param: click.Parameter, text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except RecursionError:
        raise click.BadParameter("it is nested too deep", param=param) from None
    except (msgspec.DecodeError, UnicodeError) as exc:
        raise click.BadParameter(f"{text!r} is no valid JSON: {exc}", param=param) from None


@click.command(epilog=example("msgbus notify notifications order.created '{\"id\": 7}' --publisher-id orders.host1"))
@click.argument("topic")
@click.argument("event_type")
@click.argument("payload", metavar="JSON", callback=_parse)
@click.option("--level", type=click.Choice(PRIORITIES), default="info", show_default=True, help="How important it is.")
@click.option("--publisher-id", metavar="TEXT", help="Who sends it.  [default: nobody]")
@json_option(quiet=True)
@bus_options
def notify(
    topic: str,
    event_type: str,
    payload: Any,
    level: str,
    publisher_id: str | None,
    url: str | None,
    config_files: tuple[str, ...],
    exchange: str | None,
) -> None:
    """Send a notification of the type EVENT_TYPE, with the payload JSON, to the topic TOPIC.LEVEL.

    Ends when the message system has taken it; prints nothing. If nobody has listened yet, a message system that stores
    messages keeps it for the first listener; on others that is an error (3).
    """
    from msgbus.notify.notification import make_message
    from msgbus.notify.sending import send_notification
    from msgbus.target import Target

    target = Target(exchange=exchange, topic=f"{topic}.{level}" if topic else topic)
    message = make_message(publisher_id, event_type, payload, level)
    with (
        open_transport(url, config_files, quiet=True, for_notifications=True) as transport,
        progress() as waiting,
        waiting("waiting for the message system to take the notification"),
    ):
        address = transport.address(target)
        send_notification(transport, address, {}, message, retry=-1, enveloped=True, interceptors=())


@click.command(
    epilog=example("msgbus listen notifications --pool audit", "msgbus listen notifications --level error --count 1")
)
@click.argument("topic")
@click.option(
    "--level",
    "levels",
    type=click.Choice(PRIORITIES),
    multiple=True,
    help="Only notifications of this level. May be given more than once.  [default: all]",
)
@click.option(
    "--pool",
    metavar="NAME",
    help="Get copies: the listeners of a pool share them. Without it, other listeners do not get what is printed.",
)
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N notifications.")
@json_option("A line of JSON for each notification, on a terminal too.", quiet=True)
@bus_options
def listen(
    topic: str,
    levels: tuple[str, ...],
    pool: str | None,
    count: int | None,
    as_json: bool,
    url: str | None,
    config_files: tuple[str, ...],
    exchange: str | None,
) -> None:
    """Print the notifications of TOPIC as they arrive, until Ctrl-C: level, type, sender and payload.

    Without --pool, no other listener gets what was printed.
    """
    from msgbus.drivers.base import Capability
    from msgbus.notify.listener import get_notification_listener
    from msgbus.target import Target

    target = Target(exchange=exchange, topic=topic)
    with open_transport(url, config_files, quiet=True, for_notifications=True) as transport:
        transport.conf.set_override("executor_thread_pool_size", 1)  # They are printed one by one, in order.
        printer = _Printer(count, as_json=as_json)
        endpoint = SimpleNamespace(**{level: partial(printer.show, level) for level in levels or PRIORITIES})
        listener = get_notification_listener(
            transport,
            [target],
            [endpoint],
            executor="threading",
            allow_requeue=Capability.REQUEUE in transport.driver.capabilities,
            pool=pool,
        )
        with stopped_by_signal():
            with progress() as waiting, waiting("waiting for the message system"):
                listener.start()
            if not as_json:
                click.echo(f"msgbus listen is ready: notifications of {topic}, over {transport.driver.state}", err=True)
            printer.begun.set()
            printer.ended.wait()
        printer.begun.set()
        listener.stop()
        listener.wait(DRAIN)
        if printer.error is not None:
            raise printer.error


class _Printer:
    """Prints notifications, on one thread.

    Attributes:
        begun: it may print; before that, notifications wait.
        ended: there is nothing more to print.
        error: nobody can be shown anything any more.
    """

    def __init__(self, count: int | None, *, as_json: bool) -> None:
        self.begun = threading.Event()
        self.ended = threading.Event()
        self.error: OSError | None = None
        self._left = count
        self._as_json = as_json

    def show(
        self, level: str, ctxt: Any, publisher_id: str | None, event_type: str, payload: Any, metadata: dict[str, Any]
    ) -> NotificationResult:
        """Print one. What is not printed any more others may have."""
        from msgbus.notify.filter import NotificationResult

        self.begun.wait()
        if self.ended.is_set():
            return NotificationResult.REQUEUE
        try:
            self._print(level, ctxt, publisher_id, event_type, payload, metadata)
        except OSError as exc:
            self.error = exc
            self.ended.set()
            return NotificationResult.REQUEUE
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                self.ended.set()
        return NotificationResult.HANDLED

    def _print(
        self, level: str, ctxt: Any, publisher_id: str | None, event_type: str, payload: Any, metadata: dict[str, Any]
    ) -> None:
        if self._as_json:
            shown = {"level": level, "event_type": event_type, "publisher_id": publisher_id, "payload": payload}
            print_json([{**shown, **metadata, "context": ctxt}])
        else:
            print_named_value(f"{level} {event_type} from {publisher_id or 'nobody'}", payload)
