"""What is sent: different for each number, so that a wrong answer is seen."""

from __future__ import annotations

import functools
from typing import Any

from benchmarks.workloads import TASKS

Payload = dict[str, Any]

SMALL = 100
SIZES = (SMALL, 10 * 1024, 1024 * 1024)
"""About so many bytes has a payload in JSON."""
MOST_BYTES = 256 * 1024 * 1024
"""So much is sent at most in one measurement of messages that nobody answers: they are in somebody's memory."""

MOST_WAITING_BYTES = 64 * 1024 * 1024
"""So much waits for answers or confirmations at most: a broker may have it in memory, with the answers."""


class WrongAnswer(Exception):
    """What came is not what was sent."""


def make_payload(number: int, size: int) -> Payload:
    """A record of about `size` bytes of JSON."""
    payload: Payload = {
        "number": number,
        "name": "instance-00042",
        "state": "active",
        "host": "compute-17",
        "tags": ["blue", "large", "spare"],
    }
    if size > SMALL:
        payload["text"] = _text(size - SMALL)
    return payload


@functools.cache
def _text(length: int) -> str:
    words = "Services call each other by name, over the message system that their operator runs. "
    return (words * (length // len(words) + 1))[:length]


def check(answer: Payload, payload: Payload) -> None:
    """Compare an answer with what it should be.

    Raises:
        WrongAnswer: they differ.
    """
    if answer != payload:
        raise WrongAnswer(f"{str(answer)[:300]} came for {str(payload)[:300]}")


def most(size: int) -> int:
    """How many messages that nobody answers may be sent in one measurement."""
    return max(MOST_BYTES // size, 1)


def window(size: int) -> int:
    """How many messages may wait for an answer, or for a confirmation that is pipelined, at one moment."""
    return min(TASKS, max(MOST_WAITING_BYTES // size, 2))


def items(size: int) -> int:
    """How many items a stream has."""
    return max(min(1000, 10 * 1024 * 1024 // size), 1)
