"""Programs that fork, end without clean-up, or drop their transports: see tests/lives.py. Here over brokers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests import lives
from tests.functional.brokers.qpid import Qpid
from tests.functional.brokers.rabbitmq import RabbitMQ

PROGRAMS = [*lives.FORKS, lives.ends_without_cleanup, lives.dropped_transports_are_collected]
each_program = pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)


@each_program
def test_on_rabbitmq(program: Callable[[str], None], rabbitmq: RabbitMQ) -> None:
    """See the program's text."""
    lives.run(program, rabbitmq.url)


@each_program
def test_on_qpid(program: Callable[[str], None], qpid: Qpid) -> None:
    """See the program's text."""
    lives.run(program, f"{qpid.url}?durable=false")
