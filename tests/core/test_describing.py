from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from datetime import datetime, time
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Optional, TypeVar

import msgspec
import pydantic
import pytest

import msgbus
from msgbus import ExplicitRPCAccessPolicy, Target, expose, get_rpc_client, get_rpc_server, one_way
from msgbus.rpc import Connection
from tests.core.typed_service import AsyncImages, Colour, Image, Images, Positive
from tests.support import new_transport

if TYPE_CHECKING:
    from decimal import Decimal

SECRET = object()
"""A default value that is nobody's business."""
Described = Callable[..., dict[str, Any]]


@pytest.fixture
def described() -> Iterator[Described]:
    """Starts a server, and asks it to describe itself."""
    with contextlib.ExitStack() as cleanup:

        def describe(*endpoints: Any, conf: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
            transport = new_transport(**(conf or {}))
            cleanup.callback(transport.cleanup)
            server = get_rpc_server(transport, Target(topic="t", server="s"), endpoints, **options)
            server.start()
            cleanup.callback(server.wait, 20)
            client = get_rpc_client(transport, Target(topic="t", namespace="msgbus"), timeout=20)
            found: dict[str, Any] = client.call({}, "describe")
            assert client.call({}, "describe") == found
            return found

        yield describe


def methods_of(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The methods of the only interface, by name."""
    (interface,) = found["interfaces"]
    return {method["name"]: method for method in interface["methods"]}


class Shop:
    """Sells things."""

    target = Target(namespace="shop", version="2.1", legacy_namespaces=["old"])
    tax = 5

    class Basket:
        """No method."""

    def price(self, ctxt: object, item: str, count: int = 1, *, secret: Any = SECRET) -> float:
        """Say what it costs.

        In euros.
        """
        raise NotImplementedError

    def prices(self, ctxt, items):  # type: ignore[no-untyped-def]  # that is what it is about
        yield from items

    @one_way
    def forget(self, ctxt: object, **names: int) -> None: ...

    def unresolved(self, ctxt: object, price: Decimal) -> None: ...

    def _private(self, ctxt: object) -> None: ...

    @property
    def costly(self) -> int:
        raise AssertionError("it was evaluated")


def test_interfaces_and_methods(described: Described) -> None:
    """Those that may be called, with signature and docstring, also of a server that does not validate."""
    found = described(Shop())
    assert (found["topic"], found["server"], found["left_out"]) == ("t", "s", [])
    (interface,) = found["interfaces"]
    assert interface["endpoint"] == "Shop"
    assert (interface["namespace"], interface["version"]) == ("shop", "2.1")
    assert interface["legacy_namespaces"] == ["old"]
    assert interface["doc"] == "Sells things."
    methods = methods_of(found)
    assert {name: method["signature"] for name, method in methods.items()} == {
        "price": "(item: str, count: int = 1, *, secret: Any = ...) -> float",
        "prices": "(items)",
        "forget": "(**names: int) -> None",
        "unresolved": "(price: Decimal) -> None",
    }
    assert methods["price"]["doc"] == "Say what it costs.\n\nIn euros."
    assert [name for name in methods if methods[name]["stream"]] == ["prices"]
    assert [name for name in methods if methods[name]["one_way"]] == ["forget"]
    assert not any(method["validated"] for method in methods.values())


def test_schemas_of_arguments_and_results(described: Described) -> None:
    """An argument is required if it has no default; nothing is said of what is not annotated, or cannot be resolved."""
    methods = methods_of(described(Shop()))
    assert methods["price"]["arguments"] == {
        "type": "object",
        "properties": {"item": {"type": "string"}, "count": {"type": "integer"}, "secret": {}},
        "required": ["item"],
        "additionalProperties": False,
    }
    assert methods["price"]["result"] == {"type": "number"}
    assert methods["prices"]["arguments"]["properties"] == {"items": {}}
    assert methods["prices"]["result"] is None
    assert methods["forget"]["arguments"]["additionalProperties"] == {"type": "integer"}
    assert methods["forget"]["result"] == {"type": "null"}
    assert methods["unresolved"]["arguments"] == {"type": "object"}


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (int, "int"),
        (None, "None"),
        (Any, "Any"),
        (Colour | None, "Colour | None"),
        (Optional[Colour], "Colour | None"),  # noqa: UP045 - that is what it is about
        (dict[str, list[Image]], "dict[str, list[Image]]"),
        (tuple[Positive, ...], "tuple[int, ...]"),
        (Positive, "int"),
        (Iterator[Image], "Iterator[Image]"),
        (Literal["a", 1], "Literal['a', 1]"),
        (Callable[[int], str], "Callable[[int], str]"),
        ("dict[str, Nowhere]", "dict[str, Nowhere]"),
        (TypeVar("T"), "~T"),
    ],
)
def test_signatures_show_types_as_they_are_written(described: Described, kind: Any, text: str) -> None:
    """Without the modules of classes, and without bounds."""

    class Endpoint:
        def method(self, ctxt: object, x: Any) -> None: ...

    Endpoint.method.__annotations__ = {"x": kind}
    assert methods_of(described(Endpoint()))["method"]["signature"] == f"(x: {text})"


class Pair(NamedTuple):
    at: datetime
    then: time


class Tree(msgspec.Struct):
    at: datetime
    many: list[Pair] = []
    by_name: dict[str, Tree | datetime | None] = {}


class Leaf(pydantic.BaseModel):
    count: int = pydantic.Field(ge=1)


class Branch(pydantic.BaseModel):
    leaves: list[Leaf] = []


class Garden:
    def plant(self, ctxt: object, tree: Tree, branches: list[Branch]) -> Leaf:
        raise NotImplementedError


def test_classes_are_defined_once(described: Described) -> None:
    """Also models of pydantic, and those that they hold; dates with times have their format."""
    found = described(Garden(), validate=True)
    plant = methods_of(found)["plant"]
    assert plant["validated"]
    assert plant["arguments"]["properties"] == {
        "tree": {"$ref": "#/$defs/Tree"},
        "branches": {"type": "array", "items": {"$ref": "#/$defs/Branch"}},
    }
    assert plant["result"] == {"$ref": "#/$defs/Leaf"}
    definitions = found["definitions"]
    assert sorted(definitions) == ["Branch", "Leaf", "Pair", "Tree"]
    assert definitions["Leaf"]["properties"]["count"]["minimum"] == 1
    assert definitions["Branch"]["properties"]["leaves"]["items"] == {"$ref": "#/$defs/Leaf"}
    stamp = {"type": "string", "format": "date-time"}
    assert definitions["Tree"]["properties"]["at"] == stamp
    assert stamp in definitions["Tree"]["properties"]["by_name"]["additionalProperties"]["anyOf"]
    assert definitions["Pair"]["prefixItems"] == [stamp, {"type": "string", "format": "time"}]
    assert "$defs" not in str({**plant["arguments"], **definitions}).replace("#/$defs/", "")


def test_servers_with_async_methods(described: Described) -> None:
    """Their methods are described as others are."""
    methods = methods_of(described(AsyncImages(), validate=True))
    assert methods["thumbnails"]["stream"]
    assert methods["thumbnails"]["result"] == {"$ref": "#/$defs/Thumbnail"}
    assert methods["resize"]["signature"] == "(image: Image, size: tuple[int, int], at: datetime) -> Thumbnail"
    assert not methods["resize"]["stream"]


def test_several_endpoints(described: Described) -> None:
    """Each is an interface of its own, in the order in which they are searched; msgbus's own are not among them."""
    found = described(Images(), Shop(), AsyncImages())
    assert [interface["endpoint"] for interface in found["interfaces"]] == ["Images", "Shop", "AsyncImages"]


class Guarded:
    @expose
    def open(self, ctxt: object) -> None: ...

    def closed(self, ctxt: object) -> None: ...


def test_methods_that_may_not_be_called_are_not_told(described: Described) -> None:
    """The access policy decides; it does not keep a server from answering for itself."""
    assert list(methods_of(described(Guarded(), access_policy=ExplicitRPCAccessPolicy))) == ["open"]


def test_a_server_with_an_explicit_access_policy_answers_pings() -> None:
    """What msgbus itself adds need not be exposed."""
    transport = new_transport()
    target = Target(topic="t", server="s")
    server = get_rpc_server(transport, target, [Guarded()], access_policy=ExplicitRPCAccessPolicy)
    server.start()
    assert [answer["server"] for answer in get_rpc_client(transport, Target(topic="t")).ping(20)] == ["s"]
    server.wait(20)
    transport.cleanup()


def test_it_can_be_turned_off(described: Described) -> None:
    """Without describe in rpc_built_in_methods a server says nothing of itself, and still answers a ping."""
    with pytest.raises(msgbus.NoSuchMethod):
        described(Shop(), conf={"rpc_built_in_methods": ["stats"]})


def many(count: int, doc: str, length: int = 1) -> Any:
    """An endpoint with many methods, of long docstrings, or with classes of long schemas."""

    class Wide(msgspec.Struct):
        pass

    def method(self: object, ctxt: object, wide: Any) -> None: ...

    def make(number: int) -> Any:
        fields = [(f"field_{n}_of_{number}", int) for n in range(length)]
        struct = msgspec.defstruct(f"Wide{number}", fields)

        def method(self: object, ctxt: object, wide: Any) -> None: ...

        method.__annotations__ = {"ctxt": object, "wide": struct, "return": None}
        method.__doc__ = doc
        return method

    return type("Many", (), {f"method_{number:04}": make(number) for number in range(count)})()


@pytest.mark.parametrize(
    ("count", "doc", "length", "left_out"),
    [
        (500, "short", 1, []),
        (501, "short", 1, ["methods"]),
        (100, "x" * 2000, 1, []),
        (200, "x" * 2000, 1, ["schemas", "docstrings"]),
        (200, "short", 100, ["schemas"]),
    ],
)
def test_descriptions_are_bounded(described: Described, count: int, doc: str, length: int, left_out: list[str]) -> None:
    """What would be too large for a message is left out, the schemas first, and the answer says so."""
    found = described(many(count, doc, length))
    assert found["left_out"] == left_out
    assert len(methods_of(found)) == min(count, 500)
    assert len(msgspec.json.encode(found)) <= 250_000


def test_a_server_that_cannot_be_described_in_one_message_says_so(described: Described) -> None:
    """It answers nevertheless."""

    class Old(Shop):
        target = Target(namespace="shop", legacy_namespaces=["x" * 100 + str(n) for n in range(3000)])

    found = described(Old(), Images())
    assert found["left_out"] == ["schemas", "docstrings", "methods"]
    assert [interface["endpoint"] for interface in found["interfaces"]] == ["Images"]


class Unspeakable:
    """An annotation that cannot be shown."""

    def __repr__(self) -> str:
        raise AssertionError("it was shown")


class Uncalled(pydantic.BaseModel):
    hook: Callable[[int], int]


@dataclasses.dataclass
class Limits:
    high: float = math.inf
    low: float = 1.5
    default: list[float] = dataclasses.field(default_factory=lambda: [math.nan])


class Odd:
    """Its annotations and defaults are of the kind that one does not expect."""

    def model(self, ctxt: object, call: Uncalled) -> None: ...

    def text(self, ctxt: object, it: Any) -> None: ...

    def shown(self, ctxt: object, it: Any) -> None: ...

    def hidden(
        self, ctxt: object, pair: Any = (SECRET, 1), big: int = 10**5000, many: Any = (1, "a", None)
    ) -> None: ...

    def limits(self, ctxt: object, limits: Limits) -> None: ...

    def half(self, ctxt: object) -> None: ...

    def __getattr__(self, name: str) -> Any:
        """Has everything, as objects that pass calls on have."""
        if name in ("target", "_msgbus_validated"):
            raise AttributeError
        return self.half


Odd.text.__annotations__ = {"it": "{}['nothing']"}
Odd.shown.__annotations__ = {"it": Unspeakable()}
Odd.half.__doc__ = "half \ud800 a character"


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_whatever_methods_look_like_the_server_is_described(described: Described, codec: str) -> None:
    """What cannot be shown is left out of the method, which is there."""
    found = described(Odd(), conf={"rpc_codec": codec})
    methods = methods_of(found)
    assert sorted(methods) == ["half", "hidden", "limits", "model", "shown", "text"]
    assert found["interfaces"][0]["endpoint"] == "Odd"
    assert methods["model"]["arguments"]["properties"] == {"call": {}}
    assert methods["text"]["arguments"] == {"type": "object"}
    assert methods["hidden"]["signature"] == "(pair: Any = ..., big: int = ..., many: Any = (1, 'a', None)) -> None"
    assert methods["half"]["doc"] == "half ? a character"
    limits = found["definitions"]["Limits"]["properties"]
    assert limits["high"] == {"type": "number"}
    assert limits["low"] == {"type": "number", "default": 1.5}
    assert limits["default"]["type"] == "array"


def test_a_long_docstring_or_signature_is_cut(described: Described) -> None:
    """It ends with dots then."""

    class Long:
        def method(self, ctxt: object, text: str = "x" * 100) -> None:
            raise NotImplementedError

    Long.method.__doc__ = "x" * 2001
    method = methods_of(described(Long()))["method"]
    assert method["doc"] == "x" * 2000 + "..."
    assert method["signature"] == "(text: str = ...) -> None"


class Callback:
    def old(self, ctxt: object, name: str) -> str:
        raise NotImplementedError


class Proxy:
    def dispatch(self, ctxt: Any, version: Any, method: str, namespace: Any = None, **args: Any) -> None: ...


@pytest.mark.parametrize(("proxy", "known"), [(Callback(), ["old"]), (Proxy(), [])])
def test_consumers_of_the_classic_api(proxy: Any, known: list[str]) -> None:
    """The methods of callbacks are described; those of a proxy that dispatches by itself are known to it alone."""
    transport = new_transport()
    connection = Connection(transport)
    connection.create_consumer("t", proxy)
    connection.consume_in_thread()
    client = get_rpc_client(transport, Target(topic="t", namespace="msgbus"), timeout=20)
    found = client.call({}, "describe")
    assert [method["name"] for interface in found["interfaces"] for method in interface["methods"]] == known
    connection.close()
    transport.cleanup()
