"""ConfFixture: a configuration with some options set, for the time of one test."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

from msgbus import configuration

if TYPE_CHECKING:
    from oslo_config import cfg


class ConfFixture:
    """Sets options of msgbus on a configuration, and resets it at the end. As the class of that name in oslo.messaging.

    ::

        with ConfFixture(cfg.CONF, "fake://") as fixture:
            fixture.response_timeout = 2
            transport = msgbus.get_rpc_transport(cfg.CONF)

    In tests of testtools: ``self.useFixture(ConfFixture(cfg.CONF))``. It needs neither that nor the library fixtures.

    Args:
        conf: the configuration; the core's options are registered on it.
        transport_url: a transport URL for it; None leaves what it has.

    Attributes:
        conf: the configuration.
    """

    def __init__(self, conf: cfg.ConfigOpts, transport_url: str | None = None) -> None:
        self.conf = conf
        configuration.register(conf)
        if transport_url is not None:
            self.transport_url = transport_url

    @property
    def transport_url(self) -> Any:
        """The option ``transport_url``; it can be set."""
        return self.conf.transport_url

    @transport_url.setter
    def transport_url(self, value: str | None) -> None:
        self.conf.set_override("transport_url", value)

    @property
    def response_timeout(self) -> Any:
        """The option ``rpc_response_timeout``, in seconds; it can be set."""
        return self.conf.rpc_response_timeout

    @response_timeout.setter
    def response_timeout(self, value: float) -> None:
        self.conf.set_override("rpc_response_timeout", value)

    def setUp(self) -> None:
        """Nothing: all was set when it was made. For ``useFixture``."""

    def cleanUp(self) -> None:
        """Undo all that was set on the configuration, by this object or others, and what it has read."""
        self.conf.reset()

    def getDetails(self) -> dict[str, Any]:
        """Nothing: for ``useFixture``."""
        return {}

    def __enter__(self) -> ConfFixture:
        self.setUp()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.cleanUp()
