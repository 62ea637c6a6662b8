"""The checks, a file for each subject, and the list of all of them in the order in which they run."""

from msgbus.conformance.checks.bad_input import BadInputChecks
from msgbus.conformance.checks.basics import BasicChecks
from msgbus.conformance.checks.deadlines import DeadlineChecks
from msgbus.conformance.checks.errors import ErrorChecks
from msgbus.conformance.checks.faults import BusFaultChecks
from msgbus.conformance.checks.inboxes import DriverChecks, InboxChecks
from msgbus.conformance.checks.lasting import LastingChecks
from msgbus.conformance.checks.notifications import NotificationChecks
from msgbus.conformance.checks.patterns import PatternChecks
from msgbus.conformance.checks.pausing import PausingChecks
from msgbus.conformance.checks.policies import PolicyChecks
from msgbus.conformance.checks.reconnecting import ReconnectingChecks
from msgbus.conformance.checks.sending import SendingChecks
from msgbus.conformance.checks.settling import SettlingChecks
from msgbus.conformance.checks.stopping import StoppingChecks
from msgbus.conformance.checks.streams import StreamChecks
from msgbus.conformance.checks.subscribing import SubscribingChecks
from msgbus.conformance.checks.verbs import VerbChecks

DRIVER: tuple[type, ...] = (
    BasicChecks,
    SettlingChecks,
    SubscribingChecks,
    SendingChecks,
    InboxChecks,
    DriverChecks,
    ReconnectingChecks,
    PausingChecks,
)
"""The checks of the bare driver."""
BUS: tuple[type, ...] = (
    PatternChecks,
    VerbChecks,
    StreamChecks,
    ErrorChecks,
    DeadlineChecks,
    BadInputChecks,
    PolicyChecks,
    StoppingChecks,
    NotificationChecks,
    BusFaultChecks,
    LastingChecks,
)
"""The checks of the whole bus."""
