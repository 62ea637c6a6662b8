"""What travels: each cell of the tables in docs/reference/values.md, in each place that a value may have."""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from msgbus import RPCClient, SerializationError, Target, get_rpc_client, get_rpc_server, rpc
from tests.support import EVENT_TIMEOUT, ROOT, new_conf, new_transport, new_url

PAGE = (ROOT / "docs" / "reference" / "values.md").read_text()
MODULES = (
    "array collections dataclasses datetime decimal fractions ipaddress math msgspec pathlib re types uuid zoneinfo"
)
NAMES: dict[str, Any] = {name: __import__(name) for name in MODULES.split()}
exec(PAGE.partition("```python\n")[2].partition("```")[0], NAMES)  # noqa: S102 - the classes of the examples

CODECS: dict[str, dict[str, Any]] = {
    "msgpack": {"rpc_codec": "msgpack"},
    "json": {"rpc_codec": "json"},
    "lossy": {"rpc_codec": "json", "rpc_json_lossy": True},
}
ERROR = "SerializationError"


class Cell(NamedTuple):
    """What a table says of a value under a codec."""

    codec: str
    sent: str
    arrives: str


def _tables() -> Iterator[list[list[str]]]:
    for table in re.findall(r"^\| you send .*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE):
        yield [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def _code(cell: str) -> str:
    found = re.match(r"`(.+?)`(?: \(|$)", cell)
    assert found, cell
    return found[1]


def _cells() -> list[Cell]:
    as_it_is, other_form, one_codec, not_at_all = _tables()
    cells = []
    for sent, found in as_it_is + other_form:
        cells += [Cell(codec, _code(sent), _code(found)) for codec in CODECS]
    for sent, *by_codec in one_codec:
        cells += [Cell(codec, _code(sent), _code(found)) for codec, found in zip(CODECS, by_codec, strict=True)]
    for sent, _ in not_at_all:
        lossy = "lossy" if sent != '`{1: 1, "1": 2}`' else ""  # There it arrives as the option's text says.
        cells += [Cell(codec, _code(sent), ERROR) for codec in ("msgpack", "json", lossy) if codec]
    return cells


CELLS = _cells()


def value_of(code: str) -> Any:
    """The value of an example, made anew."""
    return eval(code, NAMES)  # noqa: S307 - it is our own page


class Endpoint:
    """Takes and gives the values."""

    def __init__(self) -> None:
        self.taken: list[Any] = []

    def take(self, ctxt: Any, value: Any) -> None:
        self.taken.append(value)

    def take_context(self, ctxt: Any) -> None:
        self.taken.append((ctxt if isinstance(ctxt, dict) else ctxt.to_dict())["value"])

    def give(self, ctxt: Any, code: str) -> Any:
        value = value_of(code)
        # A generator that is returned is a stream: what cannot travel is one within the result.
        return [value] if isinstance(value, types.GeneratorType) else value

    def stream(self, ctxt: Any, code: str) -> Iterator[Any]:
        yield "before"
        yield value_of(code)


class Bus(NamedTuple):
    """A client, and what its server runs."""

    client: RPCClient
    endpoint: Endpoint


@pytest.fixture(scope="module", params=CODECS)
def bus(request: pytest.FixtureRequest) -> Iterator[tuple[str, Bus]]:
    """A server and a client, for each codec."""
    transport = new_transport(**CODECS[request.param])
    endpoint = Endpoint()
    server = get_rpc_server(transport, Target(topic="t", server="s"), [endpoint])
    server.start()
    yield request.param, Bus(get_rpc_client(transport, Target(topic="t"), timeout=EVENT_TIMEOUT), endpoint)
    server.stop()
    server.wait(EVENT_TIMEOUT)
    transport.cleanup()


def argument(bus: Bus, code: str) -> Any:
    """Send a value as an argument; what the method got."""
    bus.client.call({}, "take", value=value_of(code))
    return bus.endpoint.taken.pop()


def within(bus: Bus, code: str) -> Any:
    """Likewise within others."""
    bus.client.call({}, "take", value=[{"a": (value_of(code),)}])
    return bus.endpoint.taken.pop()[0]["a"][0]


def context(bus: Bus, code: str) -> Any:
    """Send a value in the context; what the method got."""
    bus.client.call({"value": value_of(code)}, "take_context")
    return bus.endpoint.taken.pop()


def result(bus: Bus, code: str) -> Any:
    """What the caller gets where a method returns the value."""
    return bus.client.call({}, "give", code=code)


def item(bus: Bus, code: str) -> Any:
    """What the caller gets where a generator yields the value."""
    with bus.client.multicall({}, "stream", code=code) as items:
        assert next(items) == "before"
        return next(items)


PLACES: list[Callable[[Bus, str], Any]] = [argument, within, context, result, item]


def check(get: Callable[[], Any], cell: Cell) -> None:
    """Compare what arrives with the cell: types, signs of zero and NaN too."""
    if cell.arrives == ERROR:
        with pytest.raises(SerializationError):
            get()
    else:
        assert repr(get()) == repr(value_of(cell.arrives))


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_each_cell_of_the_tables(bus: tuple[str, Bus], place: Callable[[Bus, str], Any]) -> None:
    """What the page says of a value holds in each place, under each codec; an argument that is refused is not sent."""
    codec, pair = bus
    wrong = []
    for cell in CELLS:
        if cell.codec == codec:
            try:
                check(lambda cell=cell: place(pair, cell.sent), cell)  # type: ignore[misc]
            except (Exception, pytest.fail.Exception) as exc:
                wrong.append(f"{cell.sent} should be {cell.arrives}: {exc!r}")
    assert not wrong
    assert not pair.endpoint.taken


@pytest.mark.parametrize("codec", CODECS)
def test_each_cell_under_the_classic_functions(codec: str) -> None:
    """What the page says holds for msgbus.rpc: arguments, results, streams and contexts."""
    conf = new_conf(transport_url=new_url(), rpc_response_timeout=EVENT_TIMEOUT, **CODECS[codec])
    rpc.init(conf)
    endpoint = Endpoint()
    connection = rpc.create_connection()
    try:
        connection.create_consumer("t", endpoint)
        connection.consume_in_thread()

        def take(code: str) -> Any:
            rpc.call({}, "t", {"method": "take", "args": {"value": value_of(code)}})
            return endpoint.taken.pop()

        def give(code: str) -> Any:
            return rpc.call({}, "t", {"method": "give", "args": {"code": code}})

        def stream(code: str) -> Any:
            return list(rpc.multicall({}, "t", {"method": "stream", "args": {"code": code}}))[1]

        def in_context(code: str) -> Any:
            rpc.call({"value": value_of(code)}, "t", {"method": "take_context", "args": {}})
            return endpoint.taken.pop()

        wrong = []
        for place in (take, give, stream, in_context):
            for cell in CELLS:
                if cell.codec == codec:
                    try:
                        check(lambda place=place, cell=cell: place(cell.sent), cell)  # type: ignore[misc]
                    except (Exception, pytest.fail.Exception) as exc:
                        wrong.append(f"{place.__name__} of {cell.sent} should be {cell.arrives}: {exc!r}")
        assert not wrong
    finally:
        connection.close()
        rpc.cleanup()


def test_the_tables_are_read() -> None:
    """The page has its four tables, and this test sees them."""
    assert len(list(_tables())) == 4
    assert len(CELLS) > 200
    assert {cell.codec for cell in CELLS} == set(CODECS)
