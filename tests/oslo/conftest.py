"""What the tests of the driver for oslo.messaging share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.oslo.support import Service


@pytest.fixture
def service() -> Iterator[Service]:
    """Services of oslo.messaging on a bus of their own."""
    made = Service()
    yield made
    made.close()
