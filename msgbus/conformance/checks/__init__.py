"""The checks, one file for each subject, and the list of all of them."""

from msgbus.conformance.checks.bad_input import BadInputChecks
from msgbus.conformance.checks.deadlines import DeadlineChecks
from msgbus.conformance.checks.errors import ErrorChecks
from msgbus.conformance.checks.faults import BusFaultChecks, DriverFaultChecks
from msgbus.conformance.checks.inboxes import DriverChecks, InboxChecks
from msgbus.conformance.checks.patterns import PatternChecks
from msgbus.conformance.checks.policies import PolicyChecks
from msgbus.conformance.checks.sending import SendingChecks
from msgbus.conformance.checks.stopping import StoppingChecks
from msgbus.conformance.checks.streams import StreamChecks
from msgbus.conformance.checks.subscribing import SubscribingChecks
from msgbus.conformance.checks.verbs import VerbChecks

ALL: tuple[type, ...] = (
    SendingChecks,
    SubscribingChecks,
    InboxChecks,
    DriverChecks,
    PatternChecks,
    VerbChecks,
    StreamChecks,
    ErrorChecks,
    DeadlineChecks,
    BadInputChecks,
    PolicyChecks,
    StoppingChecks,
    DriverFaultChecks,
    BusFaultChecks,
)
