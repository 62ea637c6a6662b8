"""The steps of ``msgbus demo``: what each does, and whether its result is the expected one."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from msgbus.cli.own_servers import Running
from msgbus.client import RPCClient
from msgbus.exceptions import MessageUndeliverable, MessagingTimeout

NAMES = ("one", "two", "three")
"""The servers."""
CALLS = 30
"""How many calls show that the servers share the work."""
SOON = 5.0
"""Seconds within which a server has run a cast, or has closed a generator whose stream was closed."""
STOPPED_TIMEOUT = 0.5
"""Seconds that the demo waits for a server that was stopped."""


class Stage(NamedTuple):
    """What the steps use.

    Attributes:
        topic: the demo's.
        client: of that topic.
        start: starts the servers.
        servers: those that were started; empty before.
    """

    topic: str
    client: RPCClient
    start: Callable[[], None]
    servers: Mapping[str, Running]

    def at(self, server: str) -> RPCClient:
        """A client of that server only."""
        return self.client.prepare(server=server)


class Outcome(NamedTuple):
    """The result of a step.

    Attributes:
        ok: whether it is the expected one.
        data: plain data.
        text: the same in words.
    """

    ok: bool
    data: dict[str, Any]
    text: str


class Step(NamedTuple):
    """A step.

    Attributes:
        name: for programs.
        title: for people.
        code: how a program would do it.
        why: what it shows.
        run: does it. Raises what msgbus raises.
    """

    name: str
    title: str
    code: str
    why: str
    run: Callable[[Stage], Outcome]


def _call_nobody(stage: Stage) -> Outcome:
    try:
        answer = stage.client.call({}, "greet", name="Ada")
    except MessageUndeliverable as exc:
        return Outcome(True, _error(exc), f"{type(exc).__name__}: {exc}")
    return Outcome(False, {"answer": answer}, f"a server answered: {answer}")


def _start(stage: Stage) -> Outcome:
    stage.start()
    pids = {name: server.pid for name, server in stage.servers.items()}
    text = ", ".join(f"{name} (process {pid})" for name, pid in pids.items())
    return Outcome(set(pids) == set(NAMES), {"servers": pids}, f"ready: {text}")


def _call(stage: Stage) -> Outcome:
    answer = stage.client.call({}, "greet", name="Ada")
    return _greeting(answer, answer["server"] in NAMES)


def _call_that_one(stage: Stage) -> Outcome:
    answer = stage.at("two").call({}, "greet", name="Ada")
    return _greeting(answer, answer["server"] == "two")


def _greeting(answer: Any, ok: bool) -> Outcome:
    return Outcome(ok and answer["text"] == "Hello, Ada", answer, f"{answer['text']!r} from server {answer['server']}")


def _cast(stage: Stage) -> Outcome:
    stage.client.cast({}, "note", text="for one of you")
    _wait_until(lambda: _who_noted(stage, "for one of you"))
    return _noted(stage, "for one of you", 1)


def _fanout_cast(stage: Stage) -> Outcome:
    stage.client.fanout_cast({}, "note", text="for all of you")
    _wait_until(lambda: len(_who_noted(stage, "for all of you")) == len(NAMES))
    return _noted(stage, "for all of you", len(NAMES))


def _noted(stage: Stage, text: str, count: int) -> Outcome:
    who = _who_noted(stage, text)
    return Outcome(len(who) == count, {"noted_by": who}, f"noted by {_list(who) or 'nobody'}")


def _who_noted(stage: Stage, text: str) -> list[str]:
    """The name of each server that has noted it, once for each time."""
    return [name for name in NAMES for note in stage.at(name).call({}, "notes") if note == text]


def _multicall(stage: Stage) -> Outcome:
    items = list(stage.client.multicall({}, "count", to=5))
    return Outcome(items == [1, 2, 3, 4, 5], {"items": items}, f"{_list(items)}, one after the other")


def _close_early(stage: Stage) -> Outcome:
    million = 1_000_000
    with stage.at("two").multicall({}, "count", to=million) as numbers:
        taken = [next(numbers) for _ in range(3)]
    _wait_until(lambda: stage.at("two").call({}, "last_count").get("to") == million)
    count = stage.at("two").call({}, "last_count")
    ok = taken == [1, 2, 3] and count.get("to") == million and count["got_to"] < million
    reached = count["got_to"] if ok else "?"
    text = f"took {_list(taken)} of {million}; the generator was closed at {reached}"
    return Outcome(ok, {"taken": taken, "generator": count}, text)


def _share(stage: Stage) -> Outcome:
    shares = _shares(stage)
    return Outcome(set(shares) == set(NAMES), {"calls": shares}, f"of {CALLS} calls {_in_words(shares)}")


def _shares(stage: Stage) -> dict[str, int]:
    ran = Counter(stage.client.call({}, "greet", name="Ada")["server"] for _ in range(CALLS))
    return {name: ran[name] for name in dict.fromkeys((*NAMES, *ran)) if ran[name]}


def _raise(stage: Stage) -> Outcome:
    try:
        answer = stage.client.call({}, "divide", a=1, b=0)
    except ZeroDivisionError as exc:
        return Outcome(True, _error(exc), f"{type(exc).__name__}: {exc}")
    return Outcome(False, {"answer": answer}, f"no error, but {answer}")


def _stop(stage: Stage) -> Outcome:
    with stage.at("three").multicall({}, "work", parts=5) as parts:
        done = [next(parts)]
        in_order = stage.servers["three"].stop()
        done += parts
    text = f"{_list(done)}; server three was asked to stop after the first, and ended cleanly"
    if not in_order:
        text = f"{_list(done)}; server three was asked to stop after the first, and did NOT end cleanly"
    return Outcome(done == [1, 2, 3, 4, 5] and in_order, {"items": done, "ended_in_order": in_order}, text)


def _go_on(stage: Stage) -> Outcome:
    shares = _shares(stage)
    return Outcome(set(shares) == {"one", "two"}, {"calls": shares}, f"of {CALLS} calls {_in_words(shares)}")


def _call_stopped(stage: Stage) -> Outcome:
    try:
        answer = stage.client.prepare(server="three", timeout=STOPPED_TIMEOUT).call({}, "greet", name="Ada")
    except (MessagingTimeout, MessageUndeliverable) as exc:
        return Outcome(True, _error(exc), f"{type(exc).__name__}: {exc}")
    return Outcome(False, {"answer": answer}, f"a server answered: {answer}")


def _wait_until(condition: Callable[[], object]) -> None:
    """Return when the condition has become true, or after `SOON`."""
    end = time.monotonic() + SOON
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)


def _error(exc: Exception) -> dict[str, str]:
    return {"error": type(exc).__name__, "message": str(exc)}


def _in_words(shares: dict[str, int]) -> str:
    return _list([f"server {name} ran {count}" for name, count in shares.items()])


def _list(items: list[Any]) -> str:
    return ", ".join(map(str, items))


STEPS = (
    Step(
        "nobody",
        "A call to nobody",
        'client.call(ctxt, "greet", name="Ada")',
        "No server listens to this topic yet. The call fails at once, not only at its timeout.",
        _call_nobody,
    ),
    Step(
        "start",
        f"{len(NAMES)} servers of one topic",
        'msgbus.get_rpc_server(transport, msgbus.Target(topic=topic, server="one"), [Service()]).start()',
        "Each has its own name. The client only needs to know the topic, and is not restarted.",
        _start,
    ),
    Step(
        "call",
        "call: any of them",
        'client.call(ctxt, "greet", name="Ada")',
        "Exactly one server of the topic ran it. The caller waited for the result.",
        _call,
    ),
    Step(
        "call_that_one",
        "call: that one",
        'client.prepare(server="two").call(ctxt, "greet", name="Ada")',
        "The named server runs it, and no other.",
        _call_that_one,
    ),
    Step(
        "cast",
        "cast: any of them, without an answer",
        'client.cast(ctxt, "note", text="for one of you")',
        "The caller continued as soon as the message system had confirmed the request. One server ran it.",
        _cast,
    ),
    Step(
        "fanout_cast",
        "fanout_cast: all of them",
        'client.fanout_cast(ctxt, "note", text="for all of you")',
        "Every server of the topic ran it.",
        _fanout_cast,
    ),
    Step(
        "multicall",
        "multicall: a stream",
        'for number in client.multicall(ctxt, "count", to=5): ...',
        "The method is a generator. Each item arrives when the generator yields it.",
        _multicall,
    ),
    Step(
        "close_early",
        "A stream that is closed early",
        'with client.multicall(ctxt, "count", to=1_000_000) as numbers: ...',
        "The server is never far ahead of the client. When the client stops, the generator is closed.",
        _close_early,
    ),
    Step(
        "share",
        "The servers share the work",
        f'for _ in range({CALLS}): client.call(ctxt, "greet", name="Ada")',
        "A free server takes the next call. More servers do more work, and the client does not change.",
        _share,
    ),
    Step(
        "error",
        "A method that raises",
        'client.call(ctxt, "divide", a=1, b=0)',
        "The method's exception on the server is raised in the client.",
        _raise,
    ),
    Step(
        "stop",
        "A server that is stopped while it works",
        'for part in client.prepare(server="three").multicall(ctxt, "work", parts=5): ...',
        "A server that is asked to stop takes no new requests, finishes the running ones, and ends.",
        _stop,
    ),
    Step(
        "go_on",
        "The others go on",
        f'for _ in range({CALLS}): client.call(ctxt, "greet", name="Ada")',
        "No call is lost because a server has stopped: the others run them.",
        _go_on,
    ),
    Step(
        "gone",
        "A call to the stopped server",
        f'client.prepare(server="three", timeout={STOPPED_TIMEOUT}).call(ctxt, "greet", name="Ada")',
        "The server could be restarting, so a message system that stores messages keeps the request for it. But the "
        "caller waits no longer than its timeout. The error says what is known.",
        _call_stopped,
    ),
)
