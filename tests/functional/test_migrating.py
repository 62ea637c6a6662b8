"""The page about migrating names all that is at the top of oslo.messaging, and says of each what is true."""

from __future__ import annotations

import re
import subprocess
import sys

import msgbus
from tests.functional.pages import ROOT

PAGE = (ROOT / "docs" / "migrating.md").read_text()
LISTING = "import json, oslo_messaging; print(json.dumps([n for n in dir(oslo_messaging) if n[0] != '_']))"
NOTIFICATIONS = {
    "LoggingErrorNotificationHandler",
    "LoggingNotificationHandler",
    "NotificationFilter",
    "NotificationResult",
    "Notifier",
    "PublishErrorsHandler",
    "get_batch_notification_listener",
    "get_notification_listener",
    "get_notification_transport",
}
"""They come all together."""


def rows() -> dict[str, str]:
    """What the page says of each name of oslo.messaging."""
    section = PAGE.partition("\n### Names\n")[2].partition("\n| elsewhere ")[0]
    found: dict[str, str] = {}
    for names, text in re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", section, re.MULTILINE):
        for name in re.findall(r"`(\w+)`", names):
            assert name not in found, f"{name} is there twice"
            found[name] = text
    assert found.pop("oslo_messaging") == "`msgbus`"
    return found


def names_of_oslo_messaging() -> set[str]:
    """Those of the installed package, but for modules that it has only because something else imports them."""
    command = [sys.executable, "-W", "ignore", "-c", LISTING]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return set(re.findall(r'"(\w+)"', printed))


def test_each_name_of_oslo_messaging_is_on_the_page() -> None:
    """A service finds every name that it imports, and no other is listed."""
    assert set(rows()) == names_of_oslo_messaging()


def test_what_is_the_same_is_there() -> None:
    """What the page calls the same can be imported from msgbus; what it does not, cannot."""
    same = {name for name, text in rows().items() if text.startswith("the same")}
    assert same - set(msgbus.__all__) == (set() if "Notifier" in msgbus.__all__ else NOTIFICATIONS)
    assert set(msgbus.__all__) & set(rows()) <= same
