from __future__ import annotations

import asyncio
import dataclasses
import types
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from msgbus import (
    AccessDenied,
    DefaultRPCAccessPolicy,
    ExpectedException,
    ExplicitRPCAccessPolicy,
    InvalidArguments,
    LegacyRPCAccessPolicy,
    NoOpSerializer,
    NoSuchMethod,
    RPCAccessPolicyBase,
    RPCDispatcher,
    Target,
    UnsupportedVersion,
    dispatcher,
    expected_exceptions,
    expose,
)
from msgbus.message import Request


def request(method: str, namespace: str | None = None, version: str | None = None, **args: Any) -> Request:
    """A request with the context of user u."""
    return Request(method, args, namespace=namespace, version=version, context={"user": "u"})


class Endpoint:
    """What the tests call."""

    attribute = "not callable"

    def echo(self, ctxt: dict[str, Any], value: Any = None) -> Any:
        return value

    def who(self, ctxt: dict[str, Any]) -> Any:
        return ctxt["user"]

    def type_error(self, ctxt: object, text: str = "") -> Any:
        return text + 5  # type: ignore[operator]  # this is the fault

    def type_error_deeper(self, ctxt: object) -> Any:
        return self.echo()  # type: ignore[call-arg]  # likewise

    def type_error_in_c(self, ctxt: object) -> Any:
        return len(5)  # type: ignore[arg-type]  # likewise

    def count(self, ctxt: object, to: int) -> Iterator[int]:
        yield from range(to)

    def _private(self, ctxt: object) -> str:
        return "private"

    @expose
    def exposed(self, ctxt: object) -> str:
        return "exposed"

    @expose
    def _exposed(self, ctxt: object) -> str:
        return "_exposed"

    @expected_exceptions(LookupError, ZeroDivisionError)
    def expects(self, ctxt: object, error: type[Exception]) -> None:
        raise error("x")

    @expected_exceptions(LookupError)
    def expects_while_yielding(self, ctxt: object, error: type[Exception]) -> Iterator[int]:
        yield 1
        raise error("x")

    @expected_exceptions(LookupError)
    def expects_type_error_inside(self, ctxt: object) -> None:
        raise TypeError("inside")


def versioned(version: str | None = None, namespace: str | None = None, **more: Any) -> Any:
    """An endpoint of that version whose method `where` says which one it is."""

    class Versioned:
        target = Target(version=version, namespace=namespace, **more)

        def where(self, ctxt: object) -> tuple[str | None, str | None]:
            return namespace, version

    return Versioned()


@pytest.mark.parametrize(
    ("namespace", "version", "found"),
    [
        (None, None, (None, None)),
        (None, "1.0", (None, None)),
        (None, "1.1", (None, "1.5")),
        (None, "1.5", (None, "1.5")),
        (None, "2.0", (None, "2.1")),
        ("n", None, ("n", "1.3")),
        ("n", "1.3", ("n", "1.3")),
        ("old", "1.0", ("n", "1.3")),
        ("older", "1.0", ("n", "1.3")),
    ],
)
def test_finds_the_endpoint(namespace: str | None, version: str | None, found: tuple[str | None, str | None]) -> None:
    """The first endpoint whose namespace, or legacy namespace, and version fit serves; 1.0 is what nobody says."""
    endpoints = [
        versioned(),
        versioned("1.5"),
        versioned("2.1"),
        versioned("1.3", "n", legacy_namespaces=["old", "older"]),
    ]
    assert RPCDispatcher(endpoints).dispatch(request("where", namespace, version)) == found


@pytest.mark.parametrize(
    ("namespace", "version"),
    [(None, "1.6"), (None, "3.0"), ("n", "1.0"), ("", None), (None, "x"), (None, "9" * 5000), (None, "1.0.0.0")],
)
def test_no_endpoint_of_that_version(namespace: str | None, version: str | None) -> None:
    """Without an endpoint of the namespace and version there is UnsupportedVersion, even for what is no version."""
    with pytest.raises(UnsupportedVersion, match="where") as caught:
        RPCDispatcher([versioned("1.5")]).find(request("where", namespace, version))
    assert caught.value.version == (version or "1.0")


@pytest.mark.parametrize("method", ["nowhere", "attribute", "", "echo.echo", "target"])
def test_no_such_method(method: str) -> None:
    """A fitting endpoint that lacks the method is NoSuchMethod; what is no method does not count as one."""

    class Targeted(Endpoint):
        target = Target()

    with pytest.raises(NoSuchMethod) as caught:
        RPCDispatcher([Endpoint(), Targeted()]).find(request(method))
    assert caught.value.method == method


def test_a_later_endpoint_may_have_the_method() -> None:
    """A fitting endpoint that lacks the method leaves it to the next one."""
    assert RPCDispatcher([object(), Endpoint()]).dispatch(request("echo", value=5)) == 5


def test_context_and_arguments() -> None:
    """A method is given the context first, and the arguments by name."""
    assert RPCDispatcher([Endpoint()]).dispatch(request("who")) == "u"


@pytest.mark.parametrize(
    ("policy", "allowed", "denied"),
    [
        (None, ["echo", "exposed"], ["_private", "_exposed", "__init__"]),
        (DefaultRPCAccessPolicy, ["echo", "exposed"], ["_private", "_exposed", "__init__"]),
        (LegacyRPCAccessPolicy, ["echo", "exposed", "_private", "_exposed"], []),
        (ExplicitRPCAccessPolicy, ["exposed", "_exposed"], ["echo", "_private", "__init__"]),
    ],
)
def test_access_policies(policy: type[RPCAccessPolicyBase] | None, allowed: list[str], denied: list[str]) -> None:
    """What a policy allows can be called; what it does not, and exists, is AccessDenied."""
    found = RPCDispatcher([Endpoint()], access_policy=policy)
    for method in allowed:
        found.dispatch(request(method))
    for method in denied:
        with pytest.raises(AccessDenied, match=method):
            found.dispatch(request(method))


def test_a_policy_of_ones_own() -> None:
    """A policy decides for each endpoint and method; a denied one leaves the method to the next endpoint."""

    class OnlyB(RPCAccessPolicyBase):
        def is_allowed(self, endpoint: object, method: str) -> bool:
            return isinstance(endpoint, B)

    class B:
        def echo(self, ctxt: object, value: int) -> int:
            return value * 2

    assert RPCDispatcher([Endpoint(), B()], access_policy=OnlyB).dispatch(request("echo", value=5)) == 10
    with pytest.raises(AccessDenied):
        RPCDispatcher([Endpoint(), B()], access_policy=OnlyB).dispatch(request("who"))


@pytest.mark.parametrize("policy", [DefaultRPCAccessPolicy(), object, int])
def test_refuses_an_invalid_policy(policy: Any) -> None:
    """A policy has to be a class, and a subclass of RPCAccessPolicyBase."""
    with pytest.raises(TypeError, match="access_policy"):
        RPCDispatcher([], access_policy=policy)


@pytest.mark.parametrize("target", ["topic", 5, Target(version="x"), Target(version="1.2.3.4")])
def test_refuses_an_invalid_target_of_an_endpoint(target: Any) -> None:
    """An endpoint's attribute `target` has to be a Target with a version, if any, that is one."""
    bad = type("Bad", (), {"target": target})()
    with pytest.raises(TypeError):
        RPCDispatcher([bad])
    with pytest.raises(TypeError):
        RPCDispatcher([]).add_endpoint(bad)


@pytest.mark.parametrize(
    ("method", "args"),
    [
        ("echo", {"wrong": 1}),
        ("echo", {"value": 1, "wrong": 1}),
        ("who", {"value": 1}),
        ("count", {}),
        ("echo", {"ctxt": 1}),
        ("echo", {5: 1}),
        ("expects", {}),
        ("expects_while_yielding", {}),
        ("expects_type_error_inside", {"value": 1}),
    ],
)
def test_arguments_that_do_not_fit(method: str, args: dict[str, Any]) -> None:
    """Arguments that do not fit the signature are InvalidArguments, of a generator and of a decorated method too."""
    with pytest.raises(InvalidArguments):
        RPCDispatcher([Endpoint()]).dispatch(Request(method, args, context={}))


@pytest.mark.parametrize("method", ["type_error", "type_error_deeper", "type_error_in_c", "expects_type_error_inside"])
def test_a_type_error_inside_the_method(method: str) -> None:
    """A TypeError that the method itself raises stays what it is: the caller's arguments were right."""
    with pytest.raises(TypeError) as caught:
        RPCDispatcher([Endpoint()]).dispatch(request(method))
    assert type(caught.value) is TypeError


@pytest.mark.parametrize("error", [LookupError, KeyError, ZeroDivisionError])
def test_expected_exceptions(error: type[Exception]) -> None:
    """An expected exception, or one of a subclass, comes as ExpectedException, which holds it with its traceback."""
    with pytest.raises(ExpectedException) as caught:
        RPCDispatcher([Endpoint()]).dispatch(request("expects", error=error))
    cls, exc, tb = caught.value.exc_info
    assert cls is error
    assert isinstance(exc, error)
    assert tb is exc.__traceback__


class Outer:
    """Methods that expect all errors, and call one that expects some. `run_now` runs what is async."""

    @expected_exceptions(LookupError)
    def inner(self, ctxt: object) -> None:
        raise KeyError("x")

    @expected_exceptions(Exception)
    def plain(self, ctxt: object) -> None:
        self.inner(ctxt)

    @expected_exceptions(Exception)
    def generator(self, ctxt: object) -> Iterator[int]:
        yield 1
        self.inner(ctxt)

    @expected_exceptions(Exception)
    async def coroutine(self, ctxt: object) -> None:
        self.inner(ctxt)

    @expected_exceptions(Exception)
    async def async_generator(self, ctxt: object) -> AsyncIterator[int]:
        yield 1
        self.inner(ctxt)

    async def run_now(self, method: str) -> None:
        found = getattr(self, method)({})
        if isinstance(found, AsyncGenerator):
            async for _ in found:
                pass
        elif isinstance(found, Iterator):
            list(found)
        else:
            await found


@pytest.mark.parametrize("method", ["plain", "generator", "coroutine", "async_generator"])
def test_an_expected_exception_of_a_method_that_another_one_calls(method: str) -> None:
    """If both expect it, the client gets the exception itself, and not what it was wrapped in."""
    with pytest.raises(ExpectedException) as caught:
        asyncio.run(Outer().run_now(method))
    assert caught.value.exc_info[0] is KeyError


def test_other_exceptions_are_not_expected() -> None:
    """What is not among the expected ones comes as it is."""
    with pytest.raises(ValueError, match="x"):
        RPCDispatcher([Endpoint()]).dispatch(request("expects", error=ValueError))


@pytest.mark.parametrize(("error", "comes"), [(KeyError, ExpectedException), (ValueError, ValueError)])
def test_expected_exceptions_of_a_generator(error: type[Exception], comes: type[Exception]) -> None:
    """A generator method's expected exception comes, marked, when the generator raises it: after the items before."""
    items = RPCDispatcher([Endpoint()]).dispatch(request("expects_while_yielding", error=error))
    assert next(items) == 1
    with pytest.raises(comes):
        next(items)


def test_a_decorated_generator_can_be_closed() -> None:
    """Closing a decorated generator method's generator runs its `finally`."""
    closed = []

    class Closing:
        @expected_exceptions(ValueError)
        def count(self, ctxt: object) -> Iterator[int]:
            try:
                yield 1
                yield 2
            finally:
                closed.append(True)

    items = RPCDispatcher([Closing()]).dispatch(request("count"))
    assert next(items) == 1
    items.close()
    assert closed == [True]


class Async:
    """Decorated methods that are async. The last one forgets the context."""

    @expected_exceptions(LookupError)
    async def echo(self, ctxt: object, value: int) -> int:
        return value

    @expected_exceptions(LookupError)
    async def count(self, ctxt: object, value: int) -> AsyncIterator[int]:
        yield value

    @expected_exceptions(LookupError)
    async def type_error(self, ctxt: object) -> None:
        raise TypeError("inside")

    @expected_exceptions(LookupError)
    async def forgets(self, value: int) -> int:
        return value


async def run_async(method: str, **args: Any) -> Any:
    """What a method of `Async` returns, or the first item that it yields."""
    result = await RPCDispatcher([Async()], asynchronous=True).dispatch_async(request(method, **args))
    return await anext(result) if isinstance(result, AsyncGenerator) else result


@dataclasses.dataclass
class Handler:
    """An object that is called. Python cannot hash it, as any dataclass that can be compared and changed."""

    value: int

    def __call__(self, ctxt: object) -> int:
        return self.value


class AsyncHandler(Handler):
    """The same, async."""

    async def __call__(self, ctxt: object) -> int:  # type: ignore[override]  # on purpose
        return self.value


def test_a_method_may_be_any_object_that_is_called() -> None:
    """Whether it is async is known for one that cannot be hashed, too."""
    endpoint = types.SimpleNamespace(plain=Handler(1), asynchronous=AsyncHandler(2))
    served = RPCDispatcher([endpoint], asynchronous=True)
    for _ in range(2):  # What is known the second time was noted the first time.
        assert not served.runs_async(request("plain"))
        assert served.runs_async(request("asynchronous"))
    assert served.dispatch(request("plain")) == 1
    assert asyncio.run(served.dispatch_async(request("asynchronous"))) == 2


@pytest.mark.parametrize("method", ["echo", "count"])
def test_arguments_of_a_decorated_async_method_that_do_not_fit(method: str) -> None:
    """The client is told that its arguments are wrong, as for a plain method, before any of the method has run."""
    assert asyncio.run(run_async(method, value=1)) == 1
    with pytest.raises(InvalidArguments, match="unexpected keyword argument 'valeu'"):
        asyncio.run(run_async(method, valeu=1))


def test_a_decorated_async_method_that_forgets_the_context() -> None:
    """The error says so."""
    with pytest.raises(InvalidArguments, match=r"caller's context first: def forgets\(self, ctxt"):
        asyncio.run(run_async("forgets", value=1))


def test_a_type_error_inside_a_decorated_async_method() -> None:
    """It comes as it is."""
    with pytest.raises(TypeError, match="inside") as caught:
        asyncio.run(run_async("type_error"))
    assert type(caught.value) is TypeError


def test_a_generator_is_returned_before_it_has_run() -> None:
    """The generator of a method comes back unstarted; any other iterator is a value."""
    items = RPCDispatcher([Endpoint()]).dispatch(request("count", to=3))
    assert list(items) == [0, 1, 2]


class Doubling(NoOpSerializer):
    """Doubles results, negates arguments, and marks contexts."""

    def serialize_entity(self, ctxt: Any, entity: Any) -> Any:
        assert ctxt == "context of u"
        return entity * 2

    def deserialize_entity(self, ctxt: Any, entity: Any) -> Any:
        assert ctxt == "context of u"
        return -entity

    def deserialize_context(self, ctxt: dict[str, Any]) -> Any:
        return f"context of {ctxt['user']}"


def test_serializer() -> None:
    """Context and arguments are deserialized, and the result, or each item of a generator, is serialized."""
    found = RPCDispatcher([Endpoint()], Doubling())
    assert found.dispatch(request("echo", value=5)) == -10
    assert list(found.dispatch(request("count", to=-3))) == [0, 2, 4]


def test_a_serialized_generator_can_be_closed() -> None:
    """Closing the generator that serializes closes the method's."""
    closed = []

    class Closing:
        def count(self, ctxt: object) -> Iterator[int]:
            try:
                yield 1
                yield 2
            finally:
                closed.append(True)

    items = RPCDispatcher([Closing()], Doubling()).dispatch(request("count"))
    assert next(items) == 2
    items.close()
    assert closed == [True]


def test_the_cache_of_methods_is_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many versions clients ask for, no more than a bounded number of them is remembered."""
    monkeypatch.setattr(dispatcher, "_CACHED_METHODS", 10)
    found = RPCDispatcher([versioned("1.1000")])
    for minor in range(100):
        assert found.dispatch(request("where", version=f"1.{minor}")) == (None, "1.1000")
        assert len(found._found) <= 10


def test_what_is_not_found_is_not_remembered() -> None:
    """Requests that fail leave nothing behind."""
    found = RPCDispatcher([Endpoint()])
    for name in ("a", "b", "_private"):
        with pytest.raises((NoSuchMethod, AccessDenied)):
            found.find(request(name))
    assert not found._found


class Shop:
    target = Target(version="1.2")

    def order(self, ctxt: Any, item: str) -> str:
        return item

    def forgetful(self, item: str) -> str:
        return item

    def _secret(self, ctxt: Any) -> None:
        pass

    open_from = "nine"

    @property
    def opening_hours(self) -> str:
        raise AssertionError("a request has run a property")


@pytest.mark.parametrize("name", ["open_from", "opening_hours", "target"])
def test_an_attribute_is_no_method(name: str) -> None:
    """It is neither run nor suggested, and a property is not asked for its value."""
    with pytest.raises(NoSuchMethod) as caught:
        RPCDispatcher([Shop()]).find(Request(name))
    assert caught.value.near is None


class NotReady:
    def __get__(self, instance: object, _owner: object = None) -> object:
        if instance is not None:
            raise RuntimeError("the database is not open yet")
        return self


class WithDescriptor:
    database = NotReady()

    def order(self, _ctxt: object) -> None: ...


def test_an_attribute_that_cannot_be_read_does_not_hide_that_there_is_no_method() -> None:
    """The client asked for another name, and gets the usual error, with the method that it may have meant."""
    with pytest.raises(NoSuchMethod) as caught:
        RPCDispatcher([WithDescriptor()]).dispatch(Request("ordr"))
    assert caught.value.near == "order"


def test_an_attribute_that_cannot_be_read_does_not_hide_that_there_is_no_namespace() -> None:
    """The client asked for another namespace."""

    class InNamespace(WithDescriptor):
        target = Target(namespace="shop")

    with pytest.raises(UnsupportedVersion, match="No endpoint has the namespace 'other'"):
        RPCDispatcher([InNamespace()]).dispatch(Request("database", namespace="other"))


@pytest.mark.parametrize(("method", "near"), [("ordr", "order"), ("secret", None), ("zzz", None)])
def test_a_method_that_may_have_been_meant(method: str, near: str | None) -> None:
    """A typo is answered with the nearest method that may be called, and with no other."""
    with pytest.raises(NoSuchMethod) as caught:
        RPCDispatcher([Shop()]).find(Request(method))
    assert (caught.value.method, caught.value.near) == (method, near)


def test_the_error_says_what_there_is() -> None:
    """A version that is not there is answered with those that are; a namespace that is not there with that."""
    dispatcher = RPCDispatcher([Shop()])
    with pytest.raises(UnsupportedVersion, match=r"version 2.0 \(it has 1.2\)"):
        dispatcher.find(Request("order", version="2.0"))
    with pytest.raises(UnsupportedVersion, match="No endpoint has the namespace 'admin'"):
        dispatcher.find(Request("order", namespace="admin"))


def test_a_method_without_context() -> None:
    """The error says so if the context was forgotten; for other arguments that do not fit it does not."""
    dispatcher = RPCDispatcher([Shop()])
    with pytest.raises(InvalidArguments, match="takes the caller's context first"):
        dispatcher.dispatch(Request("forgetful", {"item": "tea"}))
    with pytest.raises(InvalidArguments) as caught:
        dispatcher.dispatch(Request("order", {"itme": "tea"}))
    assert "context" not in str(caught.value)


def test_a_class_is_no_endpoint() -> None:
    """Its methods need an object; one whose methods need none serves as it is."""

    class Plain:
        @staticmethod
        def order(ctxt: Any) -> str:
            return "tea"

    with pytest.raises(TypeError, match=r"Shop\(\)"):
        RPCDispatcher([Shop])
    with pytest.raises(TypeError, match="list of objects"):
        RPCDispatcher(Shop())  # type: ignore[arg-type]  # that is the mistake
    assert RPCDispatcher([Plain]).dispatch(Request("order")) == "tea"


def test_a_dispatcher_with_its_own_find_is_asked_for_each_request() -> None:
    """Also for one whose method is known already: `find` may look at the caller's context, and refuse it."""

    class Guarded(RPCDispatcher):
        def find(self, request: Request) -> Callable[..., Any]:
            if request.context["user"] != "u":
                raise AccessDenied("not for you")
            return super().find(request)

    found = Guarded([Endpoint()])
    assert found.dispatch(request("who")) == "u"
    with pytest.raises(AccessDenied, match="not for you"):
        found.dispatch(Request("who", context={"user": "another"}))
