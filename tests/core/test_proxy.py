from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar, Protocol
from uuid import UUID

import msgspec
import pydantic.dataclasses
import pytest

import msgbus
from msgbus import NoOpSerializer, RPCClient, SerializationError, Target, get_rpc_client, get_rpc_server
from msgbus.conformance.waiting import until
from tests.core.typed_service import Circle, Colour, Image, Images, Positive, Square, Thumbnail, User
from tests.support import ROOT, new_transport

AT = datetime(2026, 1, 2, tzinfo=UTC)


class ImagesApi(Protocol):
    """What a client knows of `Images`."""

    target: ClassVar[Target] = Target(namespace="images", version="1.1")

    def resize(self, image: Image, size: tuple[int, int], at: datetime = AT) -> Thumbnail: ...

    def area(self, shape: Circle | Square) -> float: ...

    def names(self, users: list[User]) -> list[User]: ...

    def inherited(self, colour: Colour) -> str: ...

    def by_number(self, texts: dict[int, str]) -> dict[int, str]: ...

    def numbers(self, *, first: Positive = 5, **others: int) -> set[int]: ...

    def raw(self) -> bytes: ...

    def scalars(self, id: UUID, price: Decimal, colour: Colour, raw: bytes, count: int | None) -> list[str]: ...

    def thumbnails(self, image: Image, count: int) -> Generator[Thumbnail, None, None]: ...

    def what(self, value: Any) -> Any: ...

    def who(self) -> str: ...

    def static(self, ctxt: dict[str, Any], width: int) -> int: ...

    def nowhere(self) -> None: ...


class Notes:
    """A service with a cast, and a method of each wrong kind."""

    def __init__(self) -> None:
        self.noted: list[Any] = []

    def note(self, ctxt: Any, image: dict[str, Any]) -> None:
        self.noted.append((ctxt, image))

    def old_result(self, ctxt: Any) -> Any:
        return {"name": "n", "width": "wide"}

    def items(self, ctxt: Any) -> Iterator[Any]:
        yield 1
        yield "two"

    def none(self, ctxt: Any) -> int:
        return 5

    def who(self, ctxt: Any) -> Any:
        return ctxt


class NotesApi(Protocol):
    @msgbus.one_way
    def note(self, image: Image) -> None: ...

    def old_result(self) -> Image: ...

    def items(self) -> Iterator[int]: ...

    def none(self) -> None: ...

    def who(self, ctxt: Any = None) -> dict[str, Any]: ...


@pytest.fixture(params=["json", "msgpack"])
def serve(request: pytest.FixtureRequest) -> Iterator[Callable[..., RPCClient]]:
    """Makes servers, and a client for each, with each codec."""
    with contextlib.ExitStack() as cleanup:

        def make(endpoint: Any, serializer: Any = None, **options: Any) -> RPCClient:
            transport = new_transport(rpc_codec=request.param)
            cleanup.callback(transport.cleanup)
            server = get_rpc_server(
                transport, Target(topic="t", server="s"), [endpoint], serializer=serializer, **options
            )
            server.start()
            cleanup.callback(server.wait, 20)
            return get_rpc_client(transport, Target(topic="t"), timeout=20, serializer=serializer)

        yield make


@pytest.fixture
def images(serve: Callable[..., RPCClient]) -> ImagesApi:
    """A typed client of a typed server."""
    return serve(Images(), validate=True).proxy(ImagesApi, {"user": "u"})


def test_arguments_and_results_have_the_declared_types(images: ImagesApi) -> None:
    """Each value arrives as what it is on both sides, whatever the codec."""
    image = Image("n", 3)
    assert images.resize(image=image, size=(1, 2), at=AT) == Thumbnail(image, (1, 2), AT)
    assert images.resize(image, (1, 2), AT) == Thumbnail(image, (1, 2), AT)
    assert images.area(Square(2.0)) == 4.0
    assert images.names([User(name="n", since=AT)]) == [User(name="n", since=AT)]
    assert images.inherited(Colour.RED) == "RED"
    assert images.by_number({1: "one"}) == {2: "one"}
    assert images.numbers(second=7) == {5, 7}
    assert images.raw() == b"\xff\x00"
    kinds = images.scalars(UUID(int=5), Decimal("1.5"), Colour.BLUE, raw=b"\xff", count=None)
    assert kinds == ["UUID", "Decimal", "Colour", "bytes", "NoneType"]
    assert images.what(value=(1,)) == "list"
    assert images.who() == "u"


def test_streams_yield_the_declared_type(images: ImagesApi) -> None:
    """A method that returns an iterator is a stream, which can be closed."""
    image = Image("n")
    found = list(images.thumbnails(image, 2))
    assert found == [Thumbnail(image, (n, n), datetime(2026, 1, 2)) for n in range(2)]
    with contextlib.closing(images.thumbnails(image, 1000)) as stream:
        assert next(stream).size == (0, 0)


def test_arguments_that_do_not_fit_the_signature_are_a_type_error_here(images: ImagesApi) -> None:
    """Nothing is sent for them; what a server refuses is its `InvalidArguments`."""
    with pytest.raises(TypeError, match=r"^resize\(\): missing a required argument: 'size'"):
        images.resize(Image("n"))  # type: ignore[call-arg]  # this is the fault
    with pytest.raises(TypeError, match=r"^raw\(\): .*unexpected keyword argument 'other'"):
        images.raw(other=1)  # type: ignore[call-arg]  # likewise
    with pytest.raises(msgbus.InvalidArguments, match=r"image\.width: expected int >= 1, got -3"):
        images.resize(Image("n", -3), (1, 2), AT)
    with pytest.raises(SerializationError, match="the argument 'image' of 'resize' cannot be turned into plain data"):
        images.resize(object(), (1, 2))  # type: ignore[arg-type]  # likewise


def test_a_method_that_the_class_or_the_server_does_not_have(images: ImagesApi) -> None:
    """The first is an AttributeError at once, the second the server's error."""
    with pytest.raises(AttributeError, match="ImagesApi has no method 'resise'; did you mean 'resize'"):
        images.resise()  # type: ignore[attr-defined]  # likewise
    with pytest.raises(msgbus.NoSuchMethod):
        images.nowhere()
    assert not hasattr(images, "_private")
    assert repr(images).startswith("<proxy of ImagesApi by <RPCClient <Target topic=t, namespace=images, version=1.1>")


def test_the_context_of_a_proxy_and_of_a_call(serve: Callable[..., RPCClient]) -> None:
    """A first parameter named ctxt is the context of the call; else it is that of the proxy, or empty."""
    client = serve(Notes())
    assert client.proxy(NotesApi).who() == {}
    notes = client.proxy(NotesApi, {"user": "all"})
    assert notes.who() == {"user": "all"}
    assert notes.who({"user": "one"}) == {"user": "one"}
    images = serve(Images(), validate=True).proxy(ImagesApi)
    assert images.static({}, width=2) == 2


def test_the_class_of_the_server_itself_may_be_the_api(serve: Callable[..., RPCClient]) -> None:
    """Its methods take the context first, as on the server."""
    images = serve(Images(), validate=True).proxy(Images)
    assert images.resize({}, image=Image("n"), size=(1, 2), at=AT) == Thumbnail(Image("n"), (1, 2), AT)
    assert images.of_class({}, 3) == "Images 3"
    assert images.who({"user": "v"}) == "v"  # type: ignore[arg-type]  # a client's context is a dict


class Numbers:
    """A server's class with generators that do not say so."""

    def count(self, ctxt, to):  # type: ignore[no-untyped-def]  # that is what it is about
        yield from range(to)

    def squares(self, ctxt: Any, to: int) -> Iterable[int]:
        yield from (number**2 for number in range(to))

    @msgbus.expected_exceptions(LookupError)
    def words(self, ctxt: Any) -> Any:
        yield "one"
        yield "two"


def test_generators_are_streams_however_they_are_annotated(serve: Callable[..., RPCClient]) -> None:
    """A call of one would only give its last item."""
    numbers: Any = serve(Numbers()).proxy(Numbers)
    assert list(numbers.count({}, 3)) == [0, 1, 2]
    assert list(numbers.squares({}, to=3)) == [0, 1, 4]
    assert list(numbers.words({})) == ["one", "two"]


class TellingApi(Protocol):
    def tell(self, ctxt: Any, /, **others: int) -> Any: ...

    def both(self, name: int, /, **others: int) -> Any: ...


class Telling:
    def tell(self, caller: Any, **others: int) -> Any:
        return [caller, others]


def test_an_argument_may_be_named_like_what_is_given_by_position(serve: Callable[..., RPCClient]) -> None:
    """It is not taken for the context; two that would be sent by the same name are refused."""
    api: Any = serve(Telling()).proxy(TellingApi)
    assert api.tell({"user": "u"}, ctxt=5) == [{"user": "u"}, {"ctxt": 5}]
    with pytest.raises(TypeError, match="multiple values for argument 'name', and arguments are sent by name"):
        api.both(1, name=2)


def test_one_way_methods_are_cast(serve: Callable[..., RPCClient]) -> None:
    """They return when the message system has the request; to all servers if the client's target says so."""
    endpoint = Notes()
    client = serve(endpoint)
    client.proxy(NotesApi, {"user": "u"}).note(Image("n"))
    client.prepare(fanout=True).proxy(NotesApi).note(Image("m"))
    until(lambda: len(endpoint.noted) == 2, "both casts")
    assert sorted(endpoint.noted, key=lambda one: len(one[0])) == [
        ({}, {"name": "m", "width": 1}),
        ({"user": "u"}, {"name": "n", "width": 1}),
    ]


def test_what_a_server_returns_instead_is_an_error(serve: Callable[..., RPCClient]) -> None:
    """It says which method, and where in the result; a method that is declared to return nothing returns that."""
    notes = serve(Notes()).proxy(NotesApi)
    with pytest.raises(SerializationError) as caught:
        notes.old_result()
    text = "NotesApi.old_result is declared to return something else: result.width: expected int, got str"
    assert str(caught.value) == text
    items = notes.items()
    assert next(items) == 1
    with pytest.raises(SerializationError, match=r"NotesApi\.items .* result: expected int, got str"):
        next(items)
    assert notes.none() is None  # type: ignore[func-returns-value]


class Places(NoOpSerializer):
    def deserialize_entity(self, ctxt: Any, entity: Any) -> Any:
        return Path(entity)


class Where:
    def where(self, ctxt: Any) -> str:
        return "/tmp"


def test_a_serializer_may_make_results_that_only_it_knows(serve: Callable[..., RPCClient]) -> None:
    """A class that cannot be made of plain data can be declared then."""
    client = get_rpc_client(serve(Where()).transport, Target(topic="t"), timeout=20, serializer=Places())
    assert client.proxy(ForeignApi).where() == Path("/tmp")


class Boxing(NoOpSerializer):
    def serialize_entity(self, ctxt: Any, entity: Any) -> Any:
        assert not isinstance(entity, msgspec.Struct)
        return [entity]

    def deserialize_entity(self, ctxt: Any, entity: Any) -> Any:
        return entity[0]


def test_the_clients_serializer_is_nearest_to_the_message(serve: Callable[..., RPCClient]) -> None:
    """Arguments are made plain before it, and results converted after it; settings of the client stay."""
    client = serve(Images(), serializer=Boxing(), validate=True)
    images = client.prepare(timeout=10).proxy(ImagesApi)
    assert images.resize(Image("n"), (1, 2), AT) == Thumbnail(Image("n"), (1, 2), AT)
    assert [item.size for item in images.thumbnails(Image("n"), 2)] == [(0, 0), (1, 1)]
    assert client.serializer is not None


class AsyncApi(Protocol):
    async def resize(self) -> None: ...


class AsyncStreamApi(Protocol):
    def items(self) -> AsyncIterator[int]: ...


class ManyApi(Protocol):
    def items(self, *names: str) -> None: ...


class UnresolvedApi(Protocol):
    def items(self, name: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821


class UnionApi(Protocol):
    def shape(self) -> Image | dict[str, int]: ...


class UnionArgumentApi(Protocol):
    def paint(self, name: str, shape: Image | dict[str, int]) -> None: ...


class MixedKeysApi(Protocol):
    def paint(self, shapes: dict[int | str, int]) -> None: ...


class ForeignApi(Protocol):
    def where(self) -> Path: ...


@pydantic.dataclasses.dataclass
class Checked:
    width: int


class PydanticDataclassApi(Protocol):
    def checked(self) -> Checked: ...


class EmptyApi(Protocol):
    target: ClassVar[Target] = Target()


@pytest.mark.parametrize(
    ("api", "text"),
    [
        (AsyncApi, "AsyncApi.resize is async: it is for a client of msgbus.aio"),
        (AsyncStreamApi, "AsyncStreamApi.items is async"),
        (ManyApi, r"ManyApi.items takes \*names"),
        (UnresolvedApi, "UnresolvedApi.items: the annotation of name, Nowhere, cannot be resolved"),
        (UnionApi, "UnionApi.shape cannot be used by a client: result: Type unions may not contain"),
        (UnionArgumentApi, "UnionArgumentApi.paint cannot be used by a client: shape: Type unions may not contain"),
        (
            MixedKeysApi,
            "MixedKeysApi.paint cannot be used by a client: shapes: the keys of a dict have to be either strings or",
        ),
        (
            ForeignApi,
            "ForeignApi.where cannot be used by a client: result: no Path can be made of the plain data that arrives",
        ),
        (PydanticDataclassApi, "result: Checked is a dataclass of pydantic, whose checks would not run"),
        (EmptyApi, "EmptyApi has no methods"),
        (Images(), "a proxy is made from a class"),
    ],
)
def test_classes_that_cannot_be_used_are_refused_when_the_proxy_is_made(
    serve: Callable[..., RPCClient], api: Any, text: str
) -> None:
    """With a TypeError that names the method."""
    with pytest.raises(TypeError, match=text):
        serve(Notes()).proxy(api)


def test_one_way_is_for_methods_that_return_nothing() -> None:
    """Others are refused where they are decorated."""
    with pytest.raises(TypeError, match="note is one way, so it returns None"):

        @msgbus.one_way  # type: ignore[type-var]  # this is the fault
        def note() -> int:
            return 5


TYPED = """
from typing import Any, AsyncIterator, ClassVar, Iterator, Protocol

import msgbus
import msgbus.aio


class Api(Protocol):
    target: ClassVar[msgbus.Target] = msgbus.Target(version="1.1")

    def add(self, a: int, b: int) -> int: ...
    def count(self, to: int) -> Iterator[int]: ...
    @msgbus.one_way
    def note(self, text: str) -> None: ...


class AsyncApi(Protocol):
    async def add(self, a: int, b: int) -> int: ...
    def count(self, to: int) -> AsyncIterator[int]: ...
    @msgbus.one_way
    async def note(self, text: str) -> None: ...


@msgbus.validated
class Endpoint:
    @msgbus.validated
    def add(self, ctxt: dict[str, Any], a: int) -> int:
        return a


def use(client: msgbus.RPCClient) -> None:
    api = client.proxy(Api, {"user": "u"})
    total: int = api.add(1, b=2) + sum(api.count(to=3))
    api.note(text="x")
    api.add(1)  # wrong
    api.add("1", 2)  # wrong
    text: str = api.add(1, 2)  # wrong
    for item in api.count(3):
        item.upper()  # wrong
    api.note(5)  # wrong
    api.nowhere()  # wrong


async def use_async(client: msgbus.aio.AsyncRPCClient) -> None:
    api = client.prepare(timeout=5).proxy(AsyncApi)
    total: int = await api.add(1, b=2)
    async for item in api.count(3):
        total += item
    await api.note(text="x")
    await api.add("1", 2)  # wrong
    api.add(1, 2) + 1  # wrong
    async for other in api.count("3"):  # wrong
        pass


class Bad(Protocol):
    @msgbus.one_way  # wrong
    def note(self, text: str) -> int: ...


def use_endpoint() -> None:
    Endpoint().add({}, 1)
    Endpoint().add({}, "1")  # wrong
"""


def test_mypy_refuses_wrong_use(tmp_path: Path) -> None:
    """It accepts each line of a program but those that are marked as wrong."""
    pytest.importorskip("mypy")
    path = tmp_path / "program.py"
    path.write_text(TYPED)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path / 'cache'}"]
    run = subprocess.run(
        [*command, "--no-error-summary", "--follow-imports=silent", str(path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    wrong = {number for number, line in enumerate(TYPED.splitlines(), 1) if line.endswith("# wrong")}
    found = {int(line.split(":")[1]) for line in run.stdout.splitlines() if ": error:" in line}
    assert (found, run.stderr) == (wrong, ""), run.stdout
