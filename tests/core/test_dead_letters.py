"""What requeue and purge of dead letters refuse. tests/functional/test_dead_letters.py has what they do."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from msgbus import Target, dead_letters
from tests.support import new_transport


@pytest.mark.parametrize("verb", [dead_letters.requeue, dead_letters.purge])
def test_a_single_id_is_not_taken_for_many(verb: Callable[..., object]) -> None:
    """Each letter whose id is a part of the string would be meant, too: the error says how one is written."""
    transport = new_transport()
    with pytest.raises(TypeError, match=r"not a string: write \['abc'\]"):
        verb(transport, Target(topic="foo"), "abc")
    transport.cleanup()
