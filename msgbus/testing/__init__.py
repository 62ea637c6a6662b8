"""For tests of services: a message system in memory, what was sent over it, and faults on demand.

With pytest all of it comes as fixtures, for which a conftest.py asks with
``pytest_plugins = ["msgbus.testing.fixtures"]``: see docs/howto/test-your-service.md. Other test frameworks use the
classes themselves.
"""

from msgbus.testing.async_bus import AsyncMemoryBus
from msgbus.testing.conf_fixture import ConfFixture
from msgbus.testing.faults import Faults
from msgbus.testing.memory_bus import MemoryBus
from msgbus.testing.sent import Sent, SentNotification, SentRequest

__all__ = ["AsyncMemoryBus", "ConfFixture", "Faults", "MemoryBus", "Sent", "SentNotification", "SentRequest"]
