"""ConfFixture, as that of oslo.messaging."""

from __future__ import annotations

import testtools
from oslo_config import cfg

from msgbus import TransportURL
from msgbus.testing import ConfFixture


def test_options_are_set_for_a_while() -> None:
    """The URL of the constructor and what is set later hold until the end, which undoes all overrides."""
    conf = cfg.ConfigOpts()
    with ConfFixture(conf, "fake://one/") as fixture:
        assert fixture.conf is conf
        assert fixture.transport_url == "fake://one/"
        assert TransportURL.parse(conf).transport == "fake"
        fixture.transport_url = "fake://two/"
        fixture.response_timeout = 3
        assert (conf.transport_url, conf.rpc_response_timeout, fixture.response_timeout) == ("fake://two/", 3, 3)
    assert (conf.transport_url, conf.rpc_response_timeout) == (None, 60)


def test_without_a_url_the_configurations_stays() -> None:
    """Only what is set changes."""
    conf = cfg.ConfigOpts()
    with ConfFixture(conf) as fixture:
        assert fixture.transport_url is None
        assert fixture.response_timeout == 60


def test_testtools_uses_it() -> None:
    """As a fixture of a test case, whose end undoes it."""
    conf = cfg.ConfigOpts()
    seen = []

    class Case(testtools.TestCase):
        def test_it(self) -> None:
            fixture = self.useFixture(ConfFixture(conf, "fake://one/"))  # type: ignore[type-var]  # it has the methods
            fixture.response_timeout = 3
            seen.append((conf.transport_url, conf.rpc_response_timeout))

    result = testtools.TestResult()
    Case("test_it").run(result)
    assert result.wasSuccessful(), result.errors
    assert seen == [("fake://one/", 3)]
    assert conf.rpc_response_timeout == 60
