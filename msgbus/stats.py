"""Stats: the endpoint that says what a server does, and has done since it was started."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgbus import current
from msgbus.counting import OUTCOMES, Method
from msgbus.dispatcher import expose
from msgbus.drivers.toolkit.loop import Loop
from msgbus.message import PING_NAMESPACE
from msgbus.processing import Processor
from msgbus.server_call import ServerCall
from msgbus.target import Target

MOST_RUNNING = 20
"""So many of the running requests are shown."""


class Stats:
    """The endpoint of the method ``stats``.

    Attributes:
        processor: of the server's requests. A forked child that starts the server has another one.
    """

    target = Target(namespace=PING_NAMESPACE)
    processor: Processor

    def __init__(self, identify: Callable[[object], dict[str, Any]]) -> None:
        """`identify` is the method ``ping``: which server this is."""
        self._identify = identify

    @expose
    def stats(self, ctxt: object) -> dict[str, Any]:
        """What the server does now, and has done since it was started. It is described in docs/howto/deploy.md.

        It never waits: see `msgbus.urgent`.
        """
        processor, now = self.processor, Loop.now()
        own = current.running.get()
        unfinished = list(processor.calls)
        running = sorted((call for call in unfinished if call.runs and call is not own), key=lambda call: call.began)
        load = processor.load
        return {
            **self._identify(ctxt),
            "uptime": round(now - processor.started_at, 3),
            "running": [_shown(call, now) for call in running[:MOST_RUNNING]],
            "running_count": len(running),
            "methods": _methods(processor, running),
            "others": dict(zip(OUTCOMES, processor.counts.others, strict=True)),
            "refused": processor.counts.refused,
            "durations": processor.durations.shown(),
            "threads": load.threads._asdict(),
            "tasks": None if load.tasks is None else load.tasks._asdict(),
            "backlog": load.backlog,
            "held": load.backlog + sum(not call.accepted and call is not own for call in unfinished),
        }


def _shown(call: ServerCall, now: float) -> dict[str, Any]:
    request = call.request
    return {
        "method": _name((request.namespace, request.method)),
        "id": request.unique_id or request.call_id,
        "seconds": round(now - call.began, 3),
    }


def _methods(processor: Processor, running: list[ServerCall]) -> dict[str, dict[str, int]]:
    """By method how often it was begun, and how that has ended. One that has only begun is there too."""
    found: dict[str, dict[str, int]] = {}
    for method, counts in sorted(processor.counts.items(), key=lambda item: _name(item[0])):
        found[_name(method)] = {"begun": sum(counts), **dict(zip(OUTCOMES, counts, strict=True))}
    for call in running[:MOST_RUNNING]:
        found.setdefault(_name((call.request.namespace, call.request.method)), dict.fromkeys(("begun", *OUTCOMES), 0))
    for call in running:
        if counted := found.get(_name((call.request.namespace, call.request.method))):
            counted["begun"] += 1
    return found


def _name(method: Method) -> str:
    namespace, name = method
    return f"{namespace}.{name}" if namespace else name
