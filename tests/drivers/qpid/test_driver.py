"""msgbus.drivers.qpid without a broker: what it declares, and what of its options it refuses."""

from __future__ import annotations

import pytest

from msgbus.drivers.base import Capability
from msgbus.exceptions import CallCancelled, ConfigurationError, InvalidTransportURL
from tests.support import new_transport

pytest.importorskip("proton", reason="the extra qpid is not installed")


def test_capabilities() -> None:
    """All capabilities but INBOX_STORAGE; and not DURABLE if the operator says so."""
    kept = set(Capability) - {Capability.INBOX_STORAGE}
    assert new_transport("qpid://").driver.capabilities == kept
    assert new_transport("qpid://localhost/?durable=false").driver.capabilities == kept - {Capability.DURABLE}


def test_state_before_the_first_connection() -> None:
    """It says where it would connect to, as whom, and no password."""
    transport = new_transport("qpid://me:s3cr3t@mq1,mq2:1234/vhost")  # Without one, the driver would be closed.
    driver = transport.driver
    assert driver.state == "Qpid at mq1:5672 (user me, virtual host vhost)"
    assert driver.up_since is None
    driver.close()
    assert driver.state.endswith("closed")


def test_tls_has_a_port_of_its_own() -> None:
    """It is 5671, unless the URL says otherwise."""
    assert ":5671 (no user)" in new_transport("qpid://mq1/?ssl=true").driver.state
    assert ":99 (no user)" in new_transport("qpid://mq1:99/?ssl=true").driver.state


@pytest.mark.parametrize("value", ["PLAIN", "SCRAM-SHA-256,PLAIN", "plain%20anonymous"])
def test_mechanisms(value: str) -> None:
    """With commas, or with blanks as in older systems."""
    new_transport(f"qpid://mq1/?sasl_mechanisms={value}")


@pytest.mark.parametrize("value", ["GSSAPI", "PLAIN,CRAM-MD5"])
def test_unknown_mechanisms_are_refused(value: str) -> None:
    """The error names those that there are."""
    with pytest.raises(ConfigurationError, match="SCRAM-SHA-256"):
        new_transport(f"qpid://mq1/?sasl_mechanisms={value}")


@pytest.mark.parametrize("query", ["heartbeat=86401", "heartbeat=1000000000000", "connect_timeout=3600.1"])
def test_a_value_that_is_too_large_is_refused(query: str) -> None:
    """At once: AMQP could not write it, and no connection would ever be made."""
    with pytest.raises(ConfigurationError, match=query.partition("=")[0]):
        new_transport(f"qpid://mq1/?{query}")


@pytest.mark.parametrize("name", ["ssl_ca_file", "ssl_cert_file", "ssl_key_file"])
def test_an_unreadable_file_is_reported_at_once(name: str) -> None:
    """And not at the first connection."""
    with pytest.raises(InvalidTransportURL, match=f"{name}: /nowhere"):
        new_transport(f"qpid://mq1/?ssl=true&{name}=/nowhere")


def test_nothing_can_be_opened_after_close() -> None:
    """A waiting caller gets the error."""
    driver = new_transport("qpid://mq1").driver
    driver.close()
    inbox = driver.open_inbox(lambda _: None)
    assert isinstance(inbox.ready.exception(1), CallCancelled)
    inbox.close().result(1)
