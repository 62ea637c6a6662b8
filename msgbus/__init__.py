"""msgbus: services call each other by name, over whatever message system their operator runs.

A service says what it wants: `RPCClient.call`, `cast`, `fanout_cast` and `multicall` on a `Target`. The operator's
configuration says how: ``rpc_backend`` or ``transport_url``. See the README for a start in a minute.
"""

from msgbus.answers import Answer, Answers
from msgbus.client import RPCClient, get_rpc_client
from msgbus.current import CurrentRequest, RequestLogFilter, current_request
from msgbus.dispatcher import (
    DefaultRPCAccessPolicy,
    ExpectedException,
    ExplicitRPCAccessPolicy,
    LegacyRPCAccessPolicy,
    RPCAccessPolicyBase,
    RPCDispatcher,
    expected_exceptions,
    expose,
)
from msgbus.encoding import decode_dead_letter
from msgbus.exceptions import (
    AccessDenied,
    CallCancelled,
    CapabilityMissing,
    CastsFailed,
    ConfigurationError,
    DriverLoadFailure,
    InvalidArguments,
    InvalidTarget,
    InvalidTransportURL,
    MessageDeliveryFailure,
    MessageTooLarge,
    MessageUndeliverable,
    MessagingException,
    MessagingTimeout,
    NoCurrentRequest,
    NoSuchMethod,
    OutcomeUnknown,
    RemoteError,
    RPCDispatcherError,
    RPCVersionCapError,
    SerializationError,
    ServerLost,
    TransportBlocked,
    TransportUnavailable,
    UnsupportedVersion,
)
from msgbus.gathering import Gathering
from msgbus.health import Health
from msgbus.interceptors import InterceptedRequest, Interceptor, Proceed
from msgbus.message import DeadLetter
from msgbus.notify import (
    LoggingErrorNotificationHandler,
    LoggingNotificationHandler,
    NotificationFilter,
    NotificationListener,
    NotificationResult,
    Notifier,
    PublishErrorsHandler,
    get_batch_notification_listener,
    get_notification_listener,
    get_notification_transport,
)
from msgbus.serializer import JsonPayloadSerializer, NoOpSerializer, Serializer
from msgbus.server import RPCServer, get_rpc_server
from msgbus.streams import Stream
from msgbus.target import Target
from msgbus.transport import Transport, get_rpc_transport, set_transport_defaults
from msgbus.typed_client import one_way
from msgbus.url import TransportHost, TransportURL
from msgbus.validation import validated
from msgbus.versions import since

__all__ = [
    "AccessDenied",
    "Answer",
    "Answers",
    "CallCancelled",
    "CapabilityMissing",
    "CastsFailed",
    "ConfigurationError",
    "CurrentRequest",
    "DeadLetter",
    "DefaultRPCAccessPolicy",
    "DriverLoadFailure",
    "ExpectedException",
    "ExplicitRPCAccessPolicy",
    "Gathering",
    "Health",
    "InterceptedRequest",
    "Interceptor",
    "InvalidArguments",
    "InvalidTarget",
    "InvalidTransportURL",
    "JsonPayloadSerializer",
    "LegacyRPCAccessPolicy",
    "LoggingErrorNotificationHandler",
    "LoggingNotificationHandler",
    "MessageDeliveryFailure",
    "MessageTooLarge",
    "MessageUndeliverable",
    "MessagingException",
    "MessagingTimeout",
    "NoCurrentRequest",
    "NoOpSerializer",
    "NoSuchMethod",
    "NotificationFilter",
    "NotificationListener",
    "NotificationResult",
    "Notifier",
    "OutcomeUnknown",
    "Proceed",
    "PublishErrorsHandler",
    "RPCAccessPolicyBase",
    "RPCClient",
    "RPCDispatcher",
    "RPCDispatcherError",
    "RPCServer",
    "RPCVersionCapError",
    "RemoteError",
    "RequestLogFilter",
    "SerializationError",
    "Serializer",
    "ServerLost",
    "Stream",
    "Target",
    "Transport",
    "TransportBlocked",
    "TransportHost",
    "TransportURL",
    "TransportUnavailable",
    "UnsupportedVersion",
    "current_request",
    "decode_dead_letter",
    "expected_exceptions",
    "expose",
    "get_batch_notification_listener",
    "get_notification_listener",
    "get_notification_transport",
    "get_rpc_client",
    "get_rpc_server",
    "get_rpc_transport",
    "one_way",
    "set_transport_defaults",
    "since",
    "validated",
]
