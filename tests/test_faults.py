"""The checker of `tests.faults`: it reports each broken promise in made-up journals, and the page shows its results."""

from __future__ import annotations

import importlib.util
import pathlib
from types import ModuleType
from typing import Any

import msgspec
import pytest

from tests.faults.figures import count, judge, record, table
from tests.faults.journal import SYSTEM, Event, Reader, Writer
from tests.faults.proofs import PROOFS, Record
from tests.faults.scenarios import SCENARIOS
from tests.faults.workload import AT_LEAST_ONCE, AT_MOST_ONCE
from tests.support import ROOT

CLIENT, ONE, TWO = 100, 1, 2
"""Process ids."""


def sent(id: str, verb: str = "call", policy: str = AT_LEAST_ONCE, at: float = 10.0, **more: Any) -> Event:
    """A message that is sent, with a deadline of 30 s."""
    expected = None if "cast" in verb else more.pop("expected", id)
    return Event(
        "sent",
        who="client",
        pid=CLIENT,
        at=at,
        id=id,
        verb=verb,
        policy=policy,
        deadline=at + 30,
        expected=expected,
        **more,
    )


def returned(id: str, value: Any = None, at: float = 11.0) -> Event:
    """Its verb returns."""
    return Event("returned", who="client", pid=CLIENT, at=at, id=id, value=value)


def raised(id: str, error: str, at: float = 11.0, **more: Any) -> Event:
    """Its verb raises."""
    return Event("raised", who="client", pid=CLIENT, at=at, id=id, error=error, **more)


def run(id: str, pid: int = ONE, at: float = 10.2) -> list[Event]:
    """A server runs it."""
    return [begun(id, pid, at), Event("finished", who=f"server-{pid}", pid=pid, at=at + 0.1, id=id)]


def begun(id: str, pid: int = ONE, at: float = 10.2) -> Event:
    """A server begins it, and does not finish it."""
    return Event("begun", who=f"server-{pid}", pid=pid, at=at, id=id)


def ready(pid: int, at: float = 1.0) -> Event:
    """A server is there."""
    return Event("ready", who=f"server-{pid}", pid=pid, at=at)


def fault(subject: str, what: str = "is killed", at: float = 10.5) -> Event:
    """Something is broken."""
    return Event("fault", who="faults", pid=9, at=at, subject=subject, text=what)


def gone(at: float) -> Event:
    """A broker that is killed has ended."""
    return Event("gone", who="faults", pid=9, at=at)


def wiped(at: float) -> Event:
    """The message system has lost what it had stored."""
    return Event("wiped", who="faults", pid=9, at=at)


def broken(*events: Event | list[Event]) -> dict[str, int]:
    """For each promise that does not hold in a journal, how many messages break it."""
    flat = [event for it in events for event in (it if isinstance(it, list) else [it])]
    flat.sort(key=lambda event: event.at)
    return {name: len(lines) for name, lines in judge(Record(flat)).items()}


def cast(id: str, **more: Any) -> list[Event]:
    """A cast that is sent and confirmed."""
    return [sent(id, "cast", **more), returned(id)]


def fanout(id: str) -> list[Event]:
    """A fanout that is sent and confirmed."""
    return [sent(id, "fanout_cast", policy=AT_MOST_ONCE), returned(id)]


GOOD: dict[str, list[Any]] = {
    "a call with its own value": [sent("a"), *run("a"), returned("a", "a")],
    "a call that ran on two servers, at least once": [sent("a"), begun("a"), *run("a", TWO), returned("a", "a")],
    "a call that one server ran twice since it was asked again": [
        *[sent("a"), *run("a"), *run("a", at=10.6), returned("a", "a")],
    ],
    "a cast that was run": [*cast("a"), *run("a")],
    "a cast that was not confirmed, and not run": [
        sent("a", "cast", errors=["TransportUnavailable"]),
        raised("a", "TransportUnavailable"),
    ],
    "a cast at most once that a killed server had begun": [*cast("a", policy=AT_MOST_ONCE), begun("a")],
    "a cast at most once that a killed broker forgot to have given away": [
        *[*cast("a", policy=AT_MOST_ONCE), *run("a"), fault(SYSTEM, at=10.9), *run("a", TWO, at=20.0)],
    ],
    "a cast at most once that a broker forgot which took seconds to end": [
        *[*cast("a", policy=AT_MOST_ONCE), fault(SYSTEM, at=9.0), *run("a", at=12.5), gone(12.0)],
        *run("a", TWO, at=20.0),
    ],
    "a cast that a message system did not keep": [*cast("a"), wiped(12.0)],
    "a cast whose confirmation was noted when the system had just lost everything": [*cast("a"), wiped(10.5)],
    "a call at most once that is uncertain": [
        sent("a", policy=AT_MOST_ONCE),
        begun("a"),
        raised("a", "OutcomeUnknown"),
    ],
    "an error that is allowed": [sent("a", errors=["CallCancelled"]), raised("a", "CallCancelled")],
    "a call within the allowance": [sent("a"), *run("a"), returned("a", "a", at=40.9)],
    "a call of a client that was frozen": [
        sent("a"),
        *run("a"),
        Event("stalled", pid=CLIENT, at=50.0, seconds=35.0),
        returned("a", "a", at=50.1),
    ],
    "a call of a client that was killed": [sent("a"), begun("a"), fault("client")],
    "a stream": [sent("a", "multicall", expected=["1", "2"]), *run("a"), returned("a", ["1", "2"])],
    "a stream that broke off": [
        sent("a", "multicall", policy=AT_MOST_ONCE, expected=["1", "2"]),
        begun("a"),
        raised("a", "ServerLost", value=["1"]),
    ],
    "a fanout that all have run": [ready(ONE), ready(TWO), *fanout("a"), *run("a"), *run("a", TWO)],
    "a fanout that a killed server has not run": [
        ready(ONE),
        ready(TWO),
        *fanout("a"),
        *run("a"),
        fault(f"server-{TWO}"),
    ],
    "a fanout that a server has not run which came later": [
        ready(ONE),
        ready(TWO, at=10.1),
        *fanout("a"),
        *run("a"),
    ],
}

BAD: dict[str, tuple[str, list[Any]]] = {
    "a confirmed cast that nobody has begun": ("lost", cast("a")),
    "a confirmed cast that nobody has finished": ("lost", [*cast("a"), begun("a")]),
    "a cast that was confirmed after its system had lost everything": (
        "lost",
        [wiped(5.0), *cast("a")],
    ),
    "a cast that was sent before its system lost everything, and confirmed long after": (
        "lost",
        [sent("a", "cast"), wiped(10.5), returned("a", at=12.0)],
    ),
    "a value that nobody has worked for": ("lost", [sent("a"), returned("a", "a")]),
    "another call's value": ("wrong", [sent("a"), *run("a"), returned("a", "b")]),
    "no value at all": ("wrong", [sent("a"), *run("a"), returned("a", None)]),
    "a stream with a gap": (
        "wrong",
        [sent("a", "multicall", expected=["1", "2", "3"]), *run("a"), returned("a", ["1", "3"])],
    ),
    "a stream that broke off, with an item twice": (
        "wrong",
        [
            sent("a", "multicall", policy=AT_MOST_ONCE, expected=["1", "2"]),
            begun("a"),
            raised("a", "ServerLost", value=["1", "1"]),
        ],
    ),
    "a call at most once on two servers": (
        "doubled",
        [sent("a", policy=AT_MOST_ONCE), *run("a"), *run("a", TWO), returned("a", "a")],
    ),
    "a cast at most once that one server has begun twice": (
        "doubled",
        [*cast("a", policy=AT_MOST_ONCE), begun("a"), *run("a", at=10.4)],
    ),
    "a cast at most once that comes again when the broker was killed long after": (
        "doubled",
        [*cast("a", policy=AT_MOST_ONCE), *run("a"), fault(SYSTEM, at=11.5), *run("a", TWO, at=20.0)],
    ),
    "a cast at most once that comes again when the broker had ended long before": (
        "doubled",
        [
            *[*cast("a", policy=AT_MOST_ONCE), fault(SYSTEM, at=9.0), gone(9.5), *run("a", at=12.5)],
            *run("a", TWO, at=20.0),
        ],
    ),
    "a fanout that one server has run twice": ("doubled", [*fanout("a"), *run("a"), *run("a", at=10.6)]),
    "a cast at least once that one server has run twice": ("run again", [*cast("a"), *run("a"), *run("a", at=10.6)]),
    "a value that comes too late": ("late", [sent("a"), *run("a"), returned("a", "a", at=41.1)]),
    "an error that comes too late": (
        "late",
        [sent("a", policy=AT_MOST_ONCE), raised("a", "MessagingTimeout", at=41.1)],
    ),
    "a call that is late by more than its client was frozen": (
        "late",
        [sent("a"), *run("a"), Event("stalled", pid=CLIENT, at=20.0, seconds=5.0), returned("a", "a", at=46.1)],
    ),
    "a call without an end": ("hung", [sent("a"), begun("a")]),
    "a call without an end, whose server was killed": ("hung", [sent("a"), begun("a"), fault(f"server-{ONE}")]),
    "a call without an end, whose client was frozen": ("hung", [sent("a"), begun("a"), fault("client", "is frozen")]),
    "an error of somebody else's": (
        "foreign",
        [sent("a", errors=["OSError"]), raised("a", "OSError", ours=False)],
    ),
    "a call at least once that times out": ("failed", [sent("a"), raised("a", "MessagingTimeout")]),
    "an error that is not among those allowed": (
        "failed",
        [sent("a", policy=AT_MOST_ONCE, errors=["OutcomeUnknown"]), raised("a", "MessagingTimeout")],
    ),
    "an error that says that it was not delivered, and it was": (
        "untrue",
        [sent("a", policy=AT_MOST_ONCE), *run("a"), raised("a", "MessageUndeliverable", not_delivered=True)],
    ),
    "a fanout that a server has missed": ("not everywhere", [ready(ONE), ready(TWO), *fanout("a"), *run("a")]),
    "a run of what nobody has sent": ("made up", run("a")),
}


@pytest.mark.parametrize("events", GOOD.values(), ids=GOOD)
def test_it_finds_no_fault_with(events: list[Event]) -> None:
    """What keeps all promises breaks none."""
    assert broken(*events) == {}


@pytest.mark.parametrize(("proof", "events"), BAD.values(), ids=BAD)
def test_it_reports(proof: str, events: list[Event]) -> None:
    """What breaks one promise breaks that one, once, and no other."""
    assert broken(*events) == {proof: 1}


def test_each_proof_can_fail() -> None:
    """There is a journal here for each."""
    assert {proof for proof, _ in BAD.values()} == set(PROOFS)


def test_it_counts() -> None:
    """Twice under at_least_once, what was not kept, and errors are counted, and broken promises by their names."""
    journal = Record(
        [
            *[sent("a"), begun("a"), *run("a", TWO), returned("a", "a")],
            *cast("b"),
            fault(SYSTEM, at=12.0),
            wiped(12.0),
            *[sent("c"), raised("c", "MessagingTimeout")],
        ]
    )
    figures = count(journal, "a system", "a_scenario", "A scenario", judge(journal))
    assert (figures.messages, figures.returned, figures.faults) == (3, 2, 1)
    assert (figures.repeated, figures.not_kept) == (1, 1)
    assert figures.hit == {"before": 1, "during": 0, "after": 0}
    assert figures.errors == {"MessagingTimeout": 1}
    assert figures.broken == {"failed": 1}
    assert table([figures]).row_count == 1


def test_it_knows_whom_a_fault_has_met() -> None:
    """Those count that nobody had begun, that the server that was hit ran, and whose answer was on its way."""
    journal = Record(
        [
            *[ready(ONE), ready(TWO)],
            *[sent("before"), *run("before", TWO, at=12.0), returned("before", "before", at=13.0)],
            *[sent("during"), begun("during"), *run("during", TWO, at=12.0), returned("during", "during", at=13.0)],
            *[sent("after"), *run("after"), returned("after", "after", at=13.0)],
            *[sent("elsewhere"), begun("elsewhere", TWO), returned("elsewhere", "elsewhere", at=13.0)],
            *[sent("ended"), *run("ended"), returned("ended", "ended", at=10.4)],
            sent("later", at=11.0),
            fault(f"server-{ONE}"),
        ]
    )
    assert journal.hit() == {"before": 1, "during": 1, "after": 1}


def test_calls_go_on_when_each_client_has_an_answer_to_a_later_call() -> None:
    """It counts from the end of the fault, where it has one, to the first answer of the client that waits longest."""
    events = [
        fault(SYSTEM, at=10.0),
        Event("over", at=14.0),
        *[sent("early", at=9.0), returned("early", "early", at=14.5)],
        *[sent("a", at=14.1), returned("a", "a", at=15.0), sent("b", at=14.2), returned("b", "b", at=14.8)],
    ]
    assert Record(events).goes_on() == pytest.approx(0.8)
    later = sent("c", at=14.1)
    later.who = "other"
    assert Record([*events, later]).goes_on() is None
    assert Record([*events, later, returned("c", "c", at=20.0)]).goes_on() == pytest.approx(6.0)


def test_the_journal_is_read_while_it_grows(tmp_path: pathlib.Path) -> None:
    """Lines of several processes come in the order of time, and half a line is read when the rest is there."""
    one, two = Writer(str(tmp_path), "one"), Writer(str(tmp_path), "two")
    reader = Reader(tmp_path)
    one.add(Event("sent", id="a", at=2.0))
    two.add(Event("begun", id="a", at=1.0))
    assert [(event.who, event.what) for event in reader.events()] == [("two", "begun"), ("one", "sent")]
    path = next(tmp_path.glob("one-*"))
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(whole[:10])
        file.flush()
        assert len(reader.events()) == 2
        file.write(whole[10:])
    assert len(reader.events()) == 3
    one.close()
    two.close()


# The page of the documentation

FOLDER = ROOT / "docs" / "reliability"


def generator() -> ModuleType:
    """The script that makes the page."""
    spec = importlib.util.spec_from_file_location("generate_reliability", FOLDER / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_made_from_the_figures() -> None:
    """Nobody has changed it by hand, nor forgotten to make it anew."""
    assert (FOLDER.parent / "reliability.md").read_text() == generator().page()


def test_the_page_counts_every_promise() -> None:
    """Each proof is counted in one column."""
    counted = [name for names in generator().COUNTED.values() for name in names]
    assert sorted(counted) == sorted(PROOFS)


def test_the_page_knows_the_scenarios() -> None:
    """What was recorded is of the scenarios as they are."""
    titles = {it.name: it.title for it in SCENARIOS}
    recorded = {it["scenario"]: it["title"] for found in generator().results().values() for it in found}
    assert recorded.items() <= titles.items()


def test_figures_are_recorded_one_by_one(tmp_path: pathlib.Path) -> None:
    """New figures of a scenario take the place of the old ones; those of others stay."""
    figures = count(Record([]), "a system", "a", "A", {})
    record([figures, msgspec.structs.replace(figures, scenario="b", title="B")], tmp_path)
    record([msgspec.structs.replace(figures, faults=7)], tmp_path)
    kept = msgspec.json.decode((tmp_path / "a system.json").read_bytes())
    assert [(it["scenario"], it["faults"]) for it in kept] == [("a", 7), ("b", 0)]
