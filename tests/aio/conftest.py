"""What the tests for msgbus.aio share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.aio.support import url_of


@pytest.fixture(params=["fake", "zmq"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a message system of each kind."""
    with url_of(request.param) as found:
        yield found


@pytest.fixture
def fake_url() -> Iterator[str]:
    """The URL of a message system in memory."""
    with url_of("fake") as found:
        yield found


@pytest.fixture
def zmq_url() -> Iterator[str]:
    """The URL of a message system over local sockets."""
    with url_of("zmq") as found:
        yield found
