"""The driver routing: rules in a file say which drivers send a notification."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from msgbus.exceptions import ConfigurationError
from msgbus.notify.driver import NotificationDriver, load_notification_driver
from msgbus.notify.notification import PRIORITIES
from msgbus.notify.options import read_notification_option

if TYPE_CHECKING:
    from oslo_config import cfg

    from msgbus.base_transport import BaseTransport

NAME = "routing"


class Rule(msgspec.Struct, forbid_unknown_fields=True):
    """What a driver gets: all that its rules accept. Without rules that is everything.

    Attributes:
        accepted_events: patterns of the event's type, with ``*`` and ``?``, as for files; one of them has to match.
        accepted_priorities: levels, in any letters.
    """

    accepted_events: list[str] | None = None
    accepted_priorities: list[str] | None = None

    def accepts(self, event_type: str, priority: str) -> bool:
        """Whether its driver gets a notification of that type and level."""
        events, priorities = self.accepted_events, self.accepted_priorities
        return (events is None or any(fnmatchcase(event_type, pattern) for pattern in events)) and (
            priorities is None or priority in {accepted.lower() for accepted in priorities}
        )


Rules = dict[str, dict[str, Rule | None]]
"""Group -> driver -> its rule."""


class RoutingDriver(NotificationDriver):
    """The driver ``routing``: has other drivers send a notification, as a file of rules says.

    The option ``routing_config`` names the file: YAML, or JSON if its name ends with ``.json``. ::

        billing:                      # the name of a group says nothing
          messagingv2:                # a driver
            accepted_events: ["order.*"]
            accepted_priorities: [info, error]
        operators:
          log:
            accepted_priorities: [error, critical]

    A driver sends a notification once if a rule of any group accepts it.
    """

    may_block = False

    def __init__(
        self, conf: cfg.ConfigOpts, topics: Sequence[str], transport: BaseTransport, interceptors: Sequence[Any] = ()
    ) -> None:
        """Read the rules.

        Raises:
            ConfigurationError: no file is named; it cannot be read; or a rule in it is wrong.
            DriverLoadFailure: a driver that is named there does not exist.
        """
        super().__init__(conf, topics, transport, interceptors)
        self._rules = read_rules(read_notification_option(conf, "routing_config"))
        names = dict.fromkeys(name for group in self._rules.values() for name in group)
        self._drivers = {name: load_notification_driver(name)(conf, topics, transport, interceptors) for name in names}

    def chosen_for(self, message: dict[str, Any], priority: str) -> Sequence[NotificationDriver]:
        """The drivers that rules accept a notification for."""
        names = [
            name
            for group in self._rules.values()
            for name, rule in group.items()
            if rule is None or rule.accepts(message["event_type"], priority)
        ]
        return [self._drivers[name] for name in dict.fromkeys(names)]

    def notify(self, ctxt: dict[str, Any], message: dict[str, Any], priority: str, retry: int) -> None:
        """See `NotificationDriver.notify`."""
        for driver in self.chosen_for(message, priority):
            driver.notify(ctxt, message, priority, retry)


def read_rules(path: str) -> Rules:
    """Read the rules of a file.

    Raises:
        ConfigurationError: the text says what is wrong, and where.
    """
    if not path:
        raise ConfigurationError(
            "the driver routing of notifications needs a file of rules: routing_config of "
            "[oslo_messaging_notifications] names it"
        )
    try:
        text = Path(path).read_bytes()
        decode = msgspec.json.decode if path.endswith(".json") else msgspec.yaml.decode
        rules = decode(text, type=Rules)
    except OSError as exc:
        raise ConfigurationError(f"routing_config of [oslo_messaging_notifications]: {exc}") from exc
    except ImportError as exc:  # oslo.config brings PyYAML
        raise ConfigurationError(
            f"{path}: to read YAML, install PyYAML; or write it as JSON, in a file *.json"
        ) from exc
    except (msgspec.MsgspecError, UnicodeError) as exc:
        raise ConfigurationError(f"{path} does not hold rules for notifications: {exc}") from exc
    for group, drivers in rules.items():
        for name, rule in drivers.items():
            if name == NAME:
                raise ConfigurationError(f"{path}: {group} has the driver {NAME}, whose rules these are")
            for priority in (rule.accepted_priorities or ()) if rule is not None else ():
                if priority.lower() not in PRIORITIES:
                    raise ConfigurationError(
                        f"{path}: {group}, {name} accepts the priority {priority!r}; there are {', '.join(PRIORITIES)}"
                    )
    return rules
