"""Canned: an endpoint with prepared answers; and what the two memory buses have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from msgbus.target import Target


class Canned:
    """An endpoint whose methods answer what is prepared for them; see `MemoryBus.answer`."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        for name, answer in answers.items():
            setattr(self, name, _method(answer))


def _method(answer: Any) -> Callable[..., Any]:
    def method(_ctxt: object, **args: Any) -> Any:
        if isinstance(answer, BaseException):
            raise answer.with_traceback(None)  # Otherwise it would keep, and show, those of all former calls.
        return answer(**args) if callable(answer) else answer

    return method


def client_target(target: str | Target) -> Target:
    """The target of a client that is for a topic, or for a target."""
    return target if isinstance(target, Target) else Target(topic=target)
