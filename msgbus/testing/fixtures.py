"""The pytest plug-in of msgbus: a message system in memory, as fixtures. See docs/howto/test-your-service.md.

A conftest.py asks for it, with ``pytest_plugins = ["msgbus.testing.fixtures"]``. It has no entry point: pytest would
load it in each run where msgbus is installed, and would compile all of msgbus anew, to rewrite its assert statements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from oslo_config import cfg

    from msgbus import RPCClient, RPCServer, Transport
    from msgbus.testing import Faults, MemoryBus, Sent


@pytest.fixture
def msgbus_bus() -> Iterator[MemoryBus]:
    """A message system in memory, for this test alone; see msgbus.testing.MemoryBus."""
    from msgbus.testing import MemoryBus

    with MemoryBus() as bus:
        yield bus


@pytest.fixture
def msgbus_conf(msgbus_bus: MemoryBus) -> cfg.ConfigOpts:
    """A configuration whose transport_url is that of msgbus_bus."""
    return msgbus_bus.conf


@pytest.fixture
def msgbus_transport(msgbus_bus: MemoryBus) -> Transport:
    """A transport to msgbus_bus."""
    return msgbus_bus.transport


@pytest.fixture
def msgbus_server(msgbus_bus: MemoryBus) -> Callable[..., RPCServer]:
    """Call it with a topic and endpoints, to start a server; see msgbus.testing.MemoryBus.serve."""
    return msgbus_bus.serve


@pytest.fixture
def msgbus_client(msgbus_bus: MemoryBus) -> Callable[..., RPCClient]:
    """Call it with a topic, to make a client; see msgbus.testing.MemoryBus.client."""
    return msgbus_bus.client


@pytest.fixture
def msgbus_sent(msgbus_bus: MemoryBus) -> Sent:
    """What was sent over msgbus_bus; see msgbus.testing.Sent."""
    return msgbus_bus.sent


@pytest.fixture
def msgbus_faults(msgbus_bus: MemoryBus) -> Faults:
    """What goes wrong on msgbus_bus on demand; see msgbus.testing.Faults."""
    return msgbus_bus.faults
