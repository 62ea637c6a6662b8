from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import msgspec
import pydantic
import pydantic.dataclasses
import pytest

import msgbus
from msgbus import (
    ExplicitRPCAccessPolicy,
    InvalidArguments,
    JsonPayloadSerializer,
    NoOpSerializer,
    RPCClient,
    SerializationError,
    Target,
    get_rpc_client,
    get_rpc_server,
    validated,
)
from msgbus.conformance.waiting import until
from msgbus.rpc import RpcDispatcher
from tests.core.typed_service import AsyncImages, Image, Images
from tests.support import new_transport

if TYPE_CHECKING:
    from decimal import Decimal

AT = "2026-01-02T03:04:05Z"
IMAGE = {"name": "n", "width": 3}
THUMBNAIL = {"image": IMAGE, "size": [1, 2], "at": AT}


class Serving:
    """A server that validates, and a client of it."""

    def __init__(self, endpoint: Any, codec: str = "json", **options: Any) -> None:
        self.transport = new_transport(rpc_codec=codec)
        self.server = get_rpc_server(self.transport, Target(topic="t", server="s"), [endpoint], **options)
        self.server.start()
        target = getattr(endpoint, "target", Target())(topic="t")
        self.client: RPCClient = get_rpc_client(self.transport, target, timeout=20)

    def call(self, method: str, **args: Any) -> Any:
        return self.client.call({"user": "u"}, method, **args)

    def refusal(self, method: str, **args: Any) -> str:
        """The text of the error for a call whose arguments do not fit."""
        with pytest.raises(InvalidArguments) as caught:
            self.call(method, **args)
        return str(caught.value)


@pytest.fixture
def serve() -> Iterator[Callable[..., Serving]]:
    """Makes servers, which end with the test."""
    made: list[Serving] = []

    def make(*args: Any, **options: Any) -> Serving:
        made.append(Serving(*args, **options))
        return made[-1]

    yield make
    for serving in made:
        serving.server.stop()
        serving.server.wait(20)
        serving.transport.cleanup()


@pytest.fixture(params=["json", "msgpack"])
def images(request: pytest.FixtureRequest, serve: Callable[..., Serving]) -> Serving:
    """A server of `Images` all of whose methods are validated, with each codec."""
    return serve(Images(), request.param, validate=True)


def test_arguments_arrive_in_their_types_and_results_as_plain_data(images: Serving) -> None:
    """A method is given what its annotations say, and what it returns is sent as plain data."""
    assert images.call("resize", image=IMAGE, size=[1, 2], at=AT) == THUMBNAIL
    types_of = images.call("scalars", id=f"{5:032x}", price="1.50", colour="red", raw="/wA=", count=None)
    assert types_of == ["UUID", "Decimal", "Colour", "bytes", "NoneType"]
    assert images.call("area", shape={"type": "Square", "side": 3}) == 9
    assert images.call("by_number", texts={"1": "one"}) == {"2": "one"}
    assert images.call("nested", it={"x": 1}) == {"x": 1}


@pytest.mark.parametrize(
    ("method", "args", "text"),
    [
        ("resize", {"image": {"name": "n", "width": -3}}, "image.width: expected int >= 1, got -3"),
        ("resize", {"image": {"name": "n", "width": 0}}, "image.width: expected int >= 1, got 0"),
        ("resize", {"image": {"name": "n", "width": "3"}}, "image.width: expected int, got str"),
        ("resize", {"image": {"name": "n", "width": True}}, "image.width: expected int, got bool"),
        ("resize", {"image": {}}, "image.name: it is missing"),
        ("resize", {"image": 5}, "image: expected object, got int"),
        ("resize", {"image": None}, "image: expected object, got null"),
        ("resize", {"size": [1]}, "size: expected array of length 2, got 1"),
        ("resize", {"size": [1, "x"]}, "size[1]: expected int, got str"),
        ("resize", {"at": "yesterday"}, "at: invalid RFC3339 encoded datetime"),
        ("decorated", {"text": "x"}, "text: expected str of length >= 2, got 1"),
        ("inherited", {"colour": "grey"}, "colour: invalid enum value 'grey'"),
        ("by_number", {"texts": {"one": "1"}}, "texts: a key of it: expected int, got str"),
        ("by_number", {"texts": {"1": "one", "2": 2}}, "texts['2']: expected str, got int"),
        (
            "by_number",
            {"texts": {str(n): "x" if n < 100 else 5 for n in range(101)}},
            "texts[...]: expected str, got int",
        ),
        ("by_number", {"texts": {"1": 1, "2": "x" * 100_000}}, "texts[...]: expected str, got int"),
        ("deep", {"it": {"a": [{}, {"b": {"x": 1}, "c": {"x": 0}}]}}, "it['a'][1]['c'].x: expected int >= 1, got 0"),
        ("deep", {"it": {"a": [{"k" * 99: {}}]}}, f"it['a'][0]['{'k' * 49}...].x: it is missing"),
        ("area", {"shape": {"type": "Hexagon"}}, "shape.type: invalid value 'Hexagon'"),
        ("names", {"users": [{"name": "n", "since": AT}, {"name": 5, "since": AT}]}, "users[1].name: input should be"),
        ("names", {"users": [{"name": "n"}]}, "users[0].since: field required"),
        ("numbers", {"first": 0}, "first: expected int >= 1, got 0"),
        ("numbers", {"second": 0}, "second: expected int >= 1, got 0"),
        ("static", {"width": 0}, "width: expected int >= 1, got 0"),
        ("of_class", {"width": 0}, "width: expected int >= 1, got 0"),
        ("missing", {"colour": "grey"}, "colour: invalid enum value 'grey'"),
    ],
)
def test_a_wrong_argument_is_refused_with_its_path(
    serve: Callable[..., Serving], method: str, args: dict[str, Any], text: str
) -> None:
    """The error says where in which argument, what was expected, and what has come."""
    images = serve(Images(), validate=True)
    given = {"image": IMAGE, "size": [1, 2], "at": AT, **args} if method == "resize" else args
    assert images.refusal(method, **given).startswith(text)


def test_a_wrong_argument_keeps_the_method_from_running(images: Serving) -> None:
    """The method does not run, and the server goes on."""
    endpoint = Images()
    images.server.dispatcher.add_endpoint(endpoint, Target(namespace="again"), validate=True)
    again = images.client.prepare(namespace="again", version=None)
    with pytest.raises(InvalidArguments):
        again.call({}, "resize", image=IMAGE, size=[1], at=AT)
    with pytest.raises(InvalidArguments):
        next(again.multicall({}, "thumbnails", image=5, count=1))
    assert endpoint.runs == []
    assert again.call({}, "resize", image=IMAGE, size=[1, 2], at=AT) == THUMBNAIL
    assert endpoint.runs == ["resize"]


def test_text_that_came_from_outside_is_bounded(serve: Callable[..., Serving]) -> None:
    """A refusal quotes no more than some hundred characters, and no text but that of an enum."""
    images = serve(Images(), validate=True)
    assert len(images.refusal("inherited", colour="x" * 10_000)) < 600
    assert "secret" not in images.refusal("resize", image=IMAGE, size=[1, "secret"], at=AT)
    assert images.refusal("numbers", first=-(10**400)) == "first: expected int >= 1"


class Twig(msgspec.Struct):
    made: ClassVar[int] = 0

    x: int = 0
    kids: dict[str, Twig] = {}

    def __post_init__(self) -> None:
        Twig.made += 1


class Odd:
    """Methods whose arguments can be wrong in ways of their own."""

    @validated
    def tag(self, ctxt: object, number: int = 0, tags: set[Any] | None = None) -> None: ...

    @validated
    def grow(self, ctxt: object, node: Twig) -> None: ...

    @validated
    def raw(self, ctxt: object, raw: Annotated[bytes, msgspec.Meta(max_length=2)]) -> None: ...

    @validated
    def more(self, ctxt: object, **others: int) -> None: ...


def refusal_of(method: str, **args: Any) -> str:
    """The text of the error for arguments of a method of `Odd`, also for what no client of msgbus sends."""
    with pytest.raises(InvalidArguments) as caught:
        RpcDispatcher([Odd()]).dispatch({}, None, method, **args)
    return str(caught.value)


def test_what_python_itself_refuses_is_a_wrong_argument() -> None:
    """What has no hash is no part of a set, and half a character no text; the error says which argument it is."""
    # msgspec names the item from 0.23 on; Python 3.14 says more before its error.
    unhashable = re.compile(r"tags(\[0\])?: .*(unhashable type: 'list'|expected a hashable value, got list)")
    assert unhashable.match(refusal_of("tag", number=1, tags=[[1]]))
    assert refusal_of("tag", tags=[1], number="\ud800") == "number: it contains half a character, which is not text"
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    assert unhashable.match(refusal_of("tag", tags=nested))


def test_lengths_are_those_of_the_value() -> None:
    """Text in which bytes travel is longer than these are."""
    assert refusal_of("raw", raw=b"abc") == "raw: expected bytes of length <= 2, got 3"
    assert refusal_of("raw", raw="YWJj") == "raw: expected bytes of length <= 2"


def test_what_is_nested_too_deep_is_a_wrong_argument() -> None:
    """It is no error of the method."""
    node: dict[str, Any] = {}
    for _ in range(100_000):
        node = {"kids": {"a": node}}
    assert refusal_of("grow", node=node) == "node: it is nested too deep"


def test_a_refusal_can_be_shown_on_a_terminal() -> None:
    """Names in what has come may hold control characters: they are escaped."""
    assert refusal_of("more", **{"\x1b[31m": "x"}) == r"\x1b[31m: expected int, got str"
    assert "\x1b" not in refusal_of("grow", node={"kids": {"\x1b[31m": {"x": ""}}})


def test_a_wrong_argument_costs_little_to_explain() -> None:
    """However many keys in however many dicts may be the wrong one: somebody may send them on purpose."""
    node: dict[str, Any] = {"x": "wrong"}
    for _ in range(200):
        node = {"kids": {**{str(number): {} for number in range(9)}, "z": node}}
    before = Twig.made
    assert refusal_of("grow", node=node).startswith("node.kids['z'].kids['z']")
    assert Twig.made - before < 30_000


def test_missing_and_unknown_arguments_are_refused_as_without_validation(images: Serving) -> None:
    """An argument too many or too few is what it is for other methods, also if the context was forgotten."""
    assert "missing 1 required positional argument: 'at'" in images.refusal("resize", image=IMAGE, size=[1, 2])
    assert "unexpected keyword argument 'nowhere'" in images.refusal("static", width=1, nowhere=1)

    class Forgetful:
        def greet(self, name: str) -> str:
            raise AssertionError

    images.server.dispatcher.add_endpoint(Forgetful(), Target(namespace="f"), validate=True)
    with pytest.raises(InvalidArguments, match="a method takes the caller's context first"):
        images.client.prepare(namespace="f", version=None).call({}, "greet", name="n")


def test_a_wrong_argument_is_not_taken_for_a_forgotten_context(serve: Callable[..., Serving]) -> None:
    """The text says what is wrong, and nothing else, also where the context has a default."""

    class WithDefault:
        def double(self, ctxt: object = None, width: int = 1) -> int:
            return 2 * width

    assert serve(WithDefault(), validate=True).refusal("double", width="x") == "width: expected int, got str"


def test_a_type_error_of_the_method_stays_one(images: Serving) -> None:
    """What a method itself raises is not taken for arguments that do not fit."""
    with pytest.raises(TypeError) as caught:
        images.call("type_error", width=1)
    assert not isinstance(caught.value, InvalidArguments)


def test_defaults_and_further_arguments(images: Serving) -> None:
    """A default stays as it is; arguments of `**others` are checked by its annotation."""
    assert images.call("numbers") == [5]
    assert images.call("numbers", first=1, second=2, third=3) == [1, 2, 3]


@dataclasses.dataclass
class Line:
    item: str
    quantity: int = 1


@dataclasses.dataclass(frozen=True)
class FrozenLine:
    item: str
    quantity: int = 1


@dataclasses.dataclass(slots=True)
class SlottedLine:
    item: str
    quantity: int = 1


class Box(msgspec.Struct):
    lines: dict[str, tuple[Line, ...]]


@dataclasses.dataclass
class Node:
    """Each knows the one that it is in, so that they hold each other."""

    inner: Node | None = None
    outer: Node | None = None
    depth: int = 0

    def __post_init__(self) -> None:
        if self.inner is not None:
            self.inner.outer = self


class Echo:
    """What it returns has come with a call."""

    def line(self, ctxt: object, line: Line) -> Line:
        return line

    def lines(self, ctxt: object, lines: list[Line]) -> Iterator[Line]:
        yield from lines

    def frozen(self, ctxt: object, line: FrozenLine) -> FrozenLine:
        return line

    def slotted(self, ctxt: object, line: SlottedLine | None) -> SlottedLine | None:
        return line

    def box(self, ctxt: object, box: Box) -> Box:
        return box

    def inner(self, ctxt: object, node: Node) -> dict[str, Any]:
        assert node.inner is not None
        return {name: value for name, value in vars(node.inner).items() if name != "outer"}


def test_defaults_of_dataclasses_are_sent_on(serve: Callable[..., Serving]) -> None:
    """A field that was not sent has its default in what the method gets, and in what it returns or sends on."""
    echo = serve(Echo(), validate=True)
    pear = {"item": "pear", "quantity": 1}
    assert echo.call("line", line={"item": "pear"}) == pear
    assert list(echo.client.multicall({}, "lines", lines=[{"item": "pear"}, {"item": "fig", "quantity": 2}])) == [
        pear,
        {"item": "fig", "quantity": 2},
    ]
    assert echo.call("frozen", line={"item": "pear"}) == pear
    assert echo.call("slotted", line={"item": "pear"}) == pear
    assert echo.call("slotted", line=None) is None
    assert echo.call("box", box={"lines": {"a": [{"item": "pear"}]}}) == {"lines": {"a": [pear]}}
    assert echo.call("inner", node={"inner": {}}) == {"inner": None, "depth": 0}


def test_what_is_not_annotated_stays_as_it_was(images: Serving) -> None:
    """An argument without an annotation, or with `Any`, arrives as it is, beside others that are checked."""
    assert images.call("half", image=IMAGE, rest=IMAGE) == ["Image", "dict"]
    assert images.call("what", value={"a": 1}) == "dict"
    assert images.refusal("half", image=5, rest=5) == "image: expected object, got int"


def test_a_context_is_converted_if_it_is_annotated_with_a_record(images: Serving) -> None:
    """A Struct, dataclass or the like; others are as the serializer has made them."""
    assert images.call("who") == "u"
    with pytest.raises(InvalidArguments, match=r"^ctxt\.user: it is missing\n"):
        images.client.call({}, "who")


def test_streams(images: Serving) -> None:
    """The arguments of a generator are checked before it begins, and what it yields is plain data."""
    items = list(images.client.multicall({}, "thumbnails", image=IMAGE, count=3))
    assert items == [{"image": IMAGE, "size": [n, n], "at": "2026-01-02T00:00:00"} for n in range(3)]
    assert images.call("thumbnails", image=IMAGE, count=2) == items[1]
    with pytest.raises(InvalidArguments, match="count: expected int, got str"):
        next(images.client.multicall({}, "thumbnails", image=IMAGE, count="x"))
    stream = images.client.multicall({}, "missing_later", colour="red")
    assert next(stream) == {"name": "RED", "width": 1}
    with pytest.raises(LookupError, match="RED"):
        next(stream)


class Shelf:
    """Its methods return what can be iterated over, in each of the ways that are declared as `Iterable`."""

    def each(self, ctxt: object) -> Iterable[Image]:
        yield Image("n")

    def all(self, ctxt: object) -> Iterable[Image]:
        return [Image("n")]

    def priced(self, ctxt: object) -> Priced:
        return Priced(5)  # type: ignore[arg-type]  # it is not looked at


def test_results_that_are_only_said_to_be_iterable(serve: Callable[..., Serving]) -> None:
    """Items are plain data whether they are yielded or in a list, and so are results of classes that are not read."""
    shelf = serve(Shelf(), validate=True)
    assert list(shelf.client.multicall({}, "each")) == [{"name": "n", "width": 1}]
    assert shelf.call("all") == [{"name": "n", "width": 1}]
    assert shelf.call("priced") == {"price": 5}


def test_casts(serve: Callable[..., Serving]) -> None:
    """A cast with a wrong argument is not run, and under at_least_once it is a dead letter at once."""
    letters: list[msgbus.DeadLetter] = []
    endpoint = Images()
    images = serve(endpoint, validate=True, on_dead_letter=letters.append)
    client = images.client.prepare(delivery="at_least_once")
    client.cast({}, "resize", image=IMAGE, size=[1, "x"], at=AT)
    client.cast({}, "resize", image=IMAGE, size=[1, 2], at=AT)
    until(lambda: endpoint.runs == ["resize"] and len(letters) == 1, "the casts")
    assert letters[0].attempts == 1
    assert "size[1]: expected int, got str" in letters[0].reason


def test_models_of_pydantic(images: Serving) -> None:
    """They are made of what arrives by pydantic's own rules, also strict ones, and travel as plain data."""
    users = [{"name": "n", "since": AT}]
    assert images.call("names", users=users) == users


class Reading(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)

    number: float | None = None
    raw: bytes = b""


class Readings:
    def take(self, ctxt: object, reading: Reading) -> Iterable[Any]:
        yield repr(reading.number)
        yield reading.raw


def test_models_of_pydantic_are_given_what_has_come(serve: Callable[..., Serving]) -> None:
    """Also what JSON does not have: a NaN does not become None, and bytes not their base64 text."""
    readings = serve(Readings(), "msgpack", validate=True)
    found = list(readings.client.multicall({}, "take", reading={"number": float("nan"), "raw": b"\xff\x00"}))
    assert found == ["nan", b"\xff\x00"]


class Group(pydantic.BaseModel):
    sizes: list[int]


class Groups:
    def add(self, ctxt: object, group: Group) -> None: ...


def test_models_with_very_many_errors(serve: Callable[..., Serving]) -> None:
    """Only their number is said: a list of all of them would take much more memory than what has come."""
    groups = serve(Groups(), validate=True)
    assert groups.refusal("add", group={"sizes": ["x"] * 100}).startswith("group.sizes[0]: input should be a valid int")
    assert groups.refusal("add", group={"sizes": ["x"] * 101}) == "group: 101 values in it do not fit"


def test_binary_results_travel_with_each_codec(images: Serving) -> None:
    """The codec msgpack has bytes; in JSON they are base64 text."""
    assert images.call("raw") == (b"\xff\x00" if images.transport.option("rpc_codec") == "msgpack" else "/wA=")


def test_a_result_that_cannot_be_sent_is_an_error(serve: Callable[..., Serving]) -> None:
    """It says whose result it is, and what the codec does not have."""
    images = serve(Images(), validate=True)
    with pytest.raises(SerializationError, match=r"the result of 'Images\.bad_result' cannot be turned"):
        images.call("bad_result")
    with pytest.raises(SerializationError, match="JSON has no number nan"):
        images.call("nan")


def test_expected_exceptions_and_access_policies(serve: Callable[..., Serving]) -> None:
    """Both decorators do what they do without validation."""
    images = serve(Images(), validate=True, access_policy=ExplicitRPCAccessPolicy)
    with pytest.raises(LookupError, match="RED"):
        images.call("missing", colour="red")
    with pytest.raises(msgbus.AccessDenied):
        images.call("resize")


def test_without_validation_nothing_is_converted(serve: Callable[..., Serving]) -> None:
    """Annotations mean nothing to a server that does not validate."""
    images = serve(Images())
    assert images.call("half", image=IMAGE, rest=5) == ["dict", "int"]


class Marked:
    @validated
    def checked(self, ctxt: object, image: Image) -> str:
        return type(image).__name__

    @validated
    @staticmethod
    def checked_static(ctxt: object, image: Image) -> str:
        return type(image).__name__

    @staticmethod
    @validated
    def static_checked(ctxt: object, image: Image) -> str:
        return type(image).__name__

    def unchecked(self, ctxt: object, image: Image) -> str:
        return type(image).__name__


@validated
class MarkedClass:
    def checked(self, ctxt: object, image: Image) -> str:
        return type(image).__name__


class Heir(MarkedClass):
    def own(self, ctxt: object, image: Image) -> str:
        return type(image).__name__


def test_methods_and_classes_can_be_marked(serve: Callable[..., Serving]) -> None:
    """Without `validate`, marked methods are validated, and all of a marked class and of classes that inherit it."""
    marked = serve(Marked())
    found = {name: marked.call(name, image=IMAGE) for name in dir(Marked) if name[0] != "_"}
    assert found == {"checked": "Image", "checked_static": "Image", "static_checked": "Image", "unchecked": "dict"}
    heir = serve(Heir())
    assert [heir.call(name, image=IMAGE) for name in ("checked", "own")] == ["Image", "Image"]
    assert Marked().checked({}, 5) == "int"  # type: ignore[arg-type]  # a direct call is not checked


def test_the_classic_api_validates_marked_methods() -> None:
    """A callback of `msgbus.rpc` may be marked as well."""
    dispatcher = RpcDispatcher([Marked()])
    assert dispatcher.dispatch({}, None, "checked", image=IMAGE) == "Image"
    with pytest.raises(InvalidArguments, match="image: expected object, got int"):
        dispatcher.dispatch({}, None, "checked", image=5)


class Boxing(NoOpSerializer):
    """Sends everything in a list."""

    def serialize_entity(self, ctxt: Any, entity: Any) -> Any:
        assert not isinstance(entity, msgspec.Struct)
        return [entity]

    def deserialize_entity(self, ctxt: Any, entity: Any) -> Any:
        return entity[0]


def test_a_serializer_is_nearest_to_the_message(serve: Callable[..., Serving]) -> None:
    """Arguments are converted after the server's serializer has made them, and results made plain before it."""
    images = serve(Images(), validate=True, serializer=Boxing())
    assert images.call("nested", it=[{"x": 1}]) == [{"x": 1}]
    assert images.refusal("nested", it=[{"x": "1"}]) == "it.x: expected int, got str"
    assert next(images.client.multicall({}, "thumbnails", image=[IMAGE], count=[1]))[0]["size"] == [0, 0]


class Engine:
    """What neither msgspec nor pydantic knows."""


class Engines(JsonPayloadSerializer):
    def deserialize_entity(self, ctxt: Any, entity: Any) -> Any:
        return Engine() if entity == "engine" else entity

    def serialize_entity(self, ctxt: Any, entity: Any) -> Any:
        return "engine" if isinstance(entity, Engine) else super().serialize_entity(ctxt, entity)


class Garage:
    def start(self, ctxt: object, engine: Engine) -> Engine:
        assert isinstance(engine, Engine)
        return engine


def test_a_serializer_may_make_what_only_it_knows(serve: Callable[..., Serving]) -> None:
    """Objects of other classes are passed on as the serializer has made them, and checked to be that."""
    garage = serve(Garage(), validate=True, serializer=Engines())
    assert garage.call("start", engine="engine") == "engine"
    assert garage.refusal("start", engine=5) == "engine: expected Engine, got int"


def refused(endpoint: Any, **options: Any) -> str:
    """Why no server can be made that validates an endpoint."""
    transport = new_transport()
    try:
        with pytest.raises(TypeError) as caught:
            get_rpc_server(transport, Target(topic="t", server="s"), [endpoint], validate=True, **options)
        return str(caught.value)
    finally:
        transport.cleanup()


class Unresolved:
    def price(self, ctxt: object, value: Decimal) -> None: ...


class UnresolvedInside:
    def price(self, ctxt: object, value: dict[str, Nowhere]) -> None: ...  # type: ignore[name-defined]  # noqa: F821


class UnresolvedResult:
    def price(self, ctxt: object) -> Decimal: ...  # type: ignore[empty-body]


@dataclasses.dataclass
class Priced:
    price: Decimal


class PricedModel(pydantic.BaseModel):
    price: Decimal


@pydantic.dataclasses.dataclass
class Checked:
    width: int


class UnresolvedField:
    def price(self, ctxt: object, item: Priced) -> None: ...


class UnresolvedModel:
    def price(self, ctxt: object, item: PricedModel) -> None: ...


class UnresolvedContext:
    def price(self, ctxt: Priced) -> None: ...


class PydanticDataclass:
    def price(self, ctxt: object, item: list[Checked]) -> None: ...


class Ambiguous:
    def start(self, ctxt: object, one: int, shape: Image | dict[str, int]) -> None: ...


class MixedKeys:
    def price(self, ctxt: object, prices: list[dict[int | str, int]]) -> None: ...


class MixedDescribedKeys:
    def price(
        self, ctxt: object, prices: dict[Annotated[int | str, msgspec.Meta(description="name or number")], int]
    ) -> None: ...


class MixedResult:
    def price(self, ctxt: object) -> dict[int | str, int]: ...  # type: ignore[empty-body]


class Foreign:
    def read(self, ctxt: object, path: Path) -> None: ...


@pytest.mark.parametrize(
    ("endpoint", "text"),
    [
        (Unresolved, "Unresolved.price: the annotation of value, Decimal, cannot be resolved: name 'Decimal'"),
        (UnresolvedInside, r"annotation of value, dict\[str, Nowhere\], cannot be resolved: name 'Nowhere'"),
        (UnresolvedResult, "UnresolvedResult.price: the annotation of the result, Decimal, cannot be resolved"),
        (UnresolvedField, "UnresolvedField.price cannot be validated: item: name 'Decimal' is not defined; define or"),
        (UnresolvedModel, "UnresolvedModel.price cannot be validated: item: name 'Decimal' is not defined; define or"),
        (UnresolvedContext, "UnresolvedContext.price cannot be validated: ctxt: name 'Decimal' is not defined"),
        (PydanticDataclass, "item: Checked is a dataclass of pydantic, whose checks would not run"),
        (Ambiguous, "Ambiguous.start cannot be validated: shape: Type unions may not contain more than one dict-like"),
        (
            MixedKeys,
            "MixedKeys.price cannot be validated: prices: the keys of a dict have to be either strings or numbers",
        ),
        (
            MixedDescribedKeys,
            "MixedDescribedKeys.price cannot be validated: prices: the keys of a dict have to be either strings or num",
        ),
        (
            MixedResult,
            "MixedResult.price cannot be validated: result: the keys of a dict have to be either strings or numbers",
        ),
        (Foreign, "Foreign.read cannot be validated: path: no Path can be made of the plain data that arrives"),
        (Garage, "Garage.start cannot be validated: engine: no Engine can be made of the plain data that arrives"),
    ],
)
def test_annotations_that_cannot_be_used_are_refused_when_the_server_is_made(endpoint: Any, text: str) -> None:
    """Not at the first call; the text names the method, the argument, and what to do."""
    with pytest.raises(TypeError, match=text):
        raise TypeError(refused(endpoint()))


def test_methods_that_may_not_be_called_may_have_any_annotations() -> None:
    """Private ones, and those that the access policy keeps, are not looked at."""

    class Private:
        def _price(self, ctxt: object, value: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    transport = new_transport()
    target = Target(topic="t", server="s")
    get_rpc_server(transport, target, [Private()], validate=True)
    get_rpc_server(transport, target, [Unresolved()], validate=True, access_policy=ExplicitRPCAccessPolicy)
    transport.cleanup()


GENERIC = """
from __future__ import annotations
type Width = int
class Store[T]:
    def put(self, ctxt, item: T, width: Width = 1) -> T:
        return item
    def add[N: int](self, ctxt, number: N) -> N:
        return number
"""


@pytest.mark.skipif(sys.version_info < (3, 12), reason="this syntax is new in Python 3.12")
def test_type_parameters_are_known(serve: Callable[..., Serving]) -> None:
    """Those of classes and of methods: what they are bound to is checked."""
    module = types.ModuleType("store")
    exec(GENERIC, module.__dict__)  # noqa: S102 - a module of its own
    store = serve(module.Store(), validate=True)
    assert store.call("put", item=[1]) == [1]
    assert store.refusal("put", item=1, width="x") == "width: expected int, got str"
    assert store.refusal("add", number="x") == "number: expected int, got str"


def test_properties_are_not_evaluated(serve: Callable[..., Serving]) -> None:
    """Making a server runs none of the endpoint's code."""

    class Careful:
        @property
        def costly(self) -> int:
            raise AssertionError("it was evaluated")

        def double(self, ctxt: object, n: int) -> int:
            return 2 * n

    assert serve(Careful(), validate=True).call("double", n=2) == 4


class Later:
    """A descriptor that has a method only when the endpoint is ready."""

    def __get__(self, endpoint: Any, owner: type) -> Any:
        if not endpoint.is_ready:
            raise RuntimeError("not yet")
        return endpoint.double


class Dynamic:
    is_ready = False
    later = Later()

    def double(self, ctxt: object, n: int) -> int:
        return 2 * n

    def __getattr__(self, name: str) -> Any:
        if name == "made":
            return self.double
        if name == "unusable":
            return Garage().start
        raise AttributeError(name)


@pytest.mark.parametrize("validate", [True, False])
def test_methods_that_are_made_when_they_are_called(serve: Callable[..., Serving], validate: bool) -> None:
    """They are validated like the others, though a server that is made before does not know them."""
    endpoint = Dynamic()
    dynamic = serve(endpoint, validate=validate)
    endpoint.is_ready = True
    for name in ("later", "made"):
        assert dynamic.call(name, n=2) == 4
        if validate:
            assert dynamic.refusal(name, n="x") == "n: expected int, got str"
        else:
            assert dynamic.call(name, n="x") == "xx"
    if validate:
        with pytest.raises(TypeError, match=r"Dynamic\.unusable cannot be validated: engine: no Engine can be made"):
            dynamic.call("unusable", engine=5)


def test_descriptors_are_not_evaluated_without_validation() -> None:
    """A server that does not validate runs none of the endpoint's code when it is made."""
    evaluated = []

    class Watched:
        def __get__(self, endpoint: Any, owner: type) -> Any:
            evaluated.append(endpoint)

    transport = new_transport()
    endpoint = type("Endpoint", (), {"watched": Watched(), "checked": Marked.checked})()
    get_rpc_server(transport, Target(topic="t", server="s"), [endpoint])
    assert evaluated == []
    transport.cleanup()


def test_an_endpoint_that_was_refused_leaves_nothing_behind() -> None:
    """Another one at the same place in memory is not taken for it."""
    dispatcher = msgbus.RPCDispatcher([])
    endpoint = Images()
    endpoint.wrong = Garage().start  # type: ignore[attr-defined]  # comes after the others
    with pytest.raises(TypeError, match="no Engine can be made"):
        dispatcher.add_endpoint(endpoint, validate=True)
    del endpoint.wrong  # type: ignore[attr-defined]  # likewise
    dispatcher.add_endpoint(endpoint)
    assert not any(validated for *_, validated in dispatcher.public_methods())


def test_a_module_as_endpoint(serve: Callable[..., Serving]) -> None:
    """Its own functions are validated; what it imports is not looked at."""
    module = types.ModuleType("shop")
    code = "from pathlib import Path\nfrom glob import glob\ndef price(ctxt, item: int) -> int:\n    return 2 * item\n"
    exec(code, module.__dict__)  # noqa: S102 - a module of its own
    shop = serve(module, validate=True)
    assert shop.call("price", item=2) == 4
    assert shop.refusal("price", item="x") == "item: expected int, got str"


def test_async_methods(serve: Callable[..., Serving]) -> None:
    """A synchronous server validates `async` methods and asynchronous generators as well."""
    endpoint = AsyncImages()
    images = serve(endpoint, validate=True)
    assert images.call("resize", image=IMAGE, size=[1, 2], at=AT) == THUMBNAIL
    assert images.call("plain", image=IMAGE) == IMAGE
    assert [item["size"] for item in images.client.multicall({}, "thumbnails", image=IMAGE, count=2)] == [
        [0, 0],
        [1, 1],
    ]
    assert images.refusal("resize", image=IMAGE, size=[1], at=AT) == "size: expected array of length 2, got 1"
    assert "unexpected keyword argument 'nowhere'" in images.refusal("resize", nowhere=1)
    with pytest.raises(InvalidArguments, match="count: expected int, got str"):
        next(images.client.multicall({}, "thumbnails", image=IMAGE, count="x"))
    with pytest.raises(LookupError, match="RED"):
        images.call("missing", colour="red")
    assert endpoint.runs == ["resize", "thumbnails"]


def test_pydantic_is_not_imported() -> None:
    """A program that does not use pydantic runs without it, also if it validates."""
    code = """
import sys
from oslo_config import cfg
import msgbus
class Endpoint:
    def add(self, ctxt, a: int, b: "int | None" = None) -> "list[int]":
        return [a]
msgbus.RPCDispatcher([Endpoint()], validate=True)
print("pydantic" in sys.modules, "asyncio" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr) == ("False False\n", "")
