"""What clients send and servers run: the specifications that the processes are started with."""

from __future__ import annotations

import msgspec

AT_LEAST_ONCE = "at_least_once"
AT_MOST_ONCE = "at_most_once"


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """Messages of one kind.

    Attributes:
        name: begins the ids of its messages, together with the client's name.
        verb: "call", "cast", "fanout_cast" or "multicall".
        policy: of delivery.
        method: which one is called: "work"; "die_once" and "die_around", in which the first server that runs it
            ends, and shortly after which.
        count: how many.
        seconds: how long the method runs; for a multicall, between two items.
        items: how many items a multicall yields.
        deadline: seconds that the caller gives each of them.
        rate: how many are sent in a second, at the most.
        concurrency: how many are under way at once, at the most.
        errors: the names of the errors by which one may end. None: any of msgbus's under at_most_once, and none
            under at_least_once.
    """

    name: str
    verb: str = "call"
    policy: str = AT_LEAST_ONCE
    method: str = "work"
    count: int = 100
    seconds: float = 0.001
    items: int = 10
    deadline: float = 60.0
    rate: float = 50.0
    concurrency: int = 16
    errors: list[str] | None = None


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """A process.

    Attributes:
        name: of the process, and of the server.
        url: of the message system.
        topic: at which servers serve, and to which clients send.
        folder: of the journal.
        options: values of the core's options.
        loads: what a client sends; empty for a server.
    """

    name: str
    url: str
    topic: str
    folder: str
    options: dict[str, str | int | float | bool] = {}
    loads: tuple[Load, ...] = ()
