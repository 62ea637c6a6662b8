"""Typed clients: objects with the methods of an annotated class, each of which calls the method of that name.

What a class says is read once, whatever number of clients use it.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import weakref
from collections.abc import Callable, Coroutine
from types import MethodType
from typing import Any, NamedTuple, TypeVar

from msgbus.conversion import Contents, Fields, is_anything, refuse_mixed_keys, to_plain
from msgbus.exceptions import SerializationError
from msgbus.message import JSON
from msgbus.mismatch import Mismatch
from msgbus.serializer import NoOpSerializer, Serializer
from msgbus.signatures import ASYNC_STREAMS, EMPTY, Signature, read_signature
from msgbus.target import Target

OneWay = TypeVar("OneWay", bound=Callable[..., None] | Callable[..., Coroutine[Any, Any, None]])

_ONE_WAY = "_msgbus_one_way"
_CONTEXTS = ("ctxt", "_ctxt", "context", "_context")
"""Names of a first parameter that make it the caller's context."""
_RESULT = "result"


def one_way(method: OneWay) -> OneWay:
    """Decorate a method of an API class, which returns None: a client casts it, and does not wait until it has run.

    ::

        class Hello(Protocol):
            @msgbus.one_way
            def note(self, text: str) -> None: ...

    Raises:
        TypeError: it is declared to return something else.
    """
    try:
        returns = getattr(method, "__annotations__", {}).get("return")
    except NameError:  # From Python 3.14 on names are looked up here, and may be defined later; see `_method`.
        returns = None
    if returns not in (None, "None"):
        raise TypeError(f"{method.__qualname__} is one way, so it returns None, and not {returns!r}")
    setattr(method, _ONE_WAY, True)
    return method


def is_one_way(function: Any) -> bool:
    """Whether a function is marked with `one_way`."""
    return getattr(function, _ONE_WAY, False) is True


class Method(NamedTuple):
    """A method of an API class.

    Attributes:
        name: its name.
        verb: the client's method that runs it: call, multicall or cast.
        shape: what it can be called with.
        context: the name of its first parameter, if that is the caller's context.
        others: the name of its ``**kwargs``, if it has them.
        encoded: the arguments that may hold more than plain data.
        encodes_others: whether those of ``**kwargs`` may.
        result: converts its result, or its items; None if they stay as they are.
    """

    name: str
    verb: str
    shape: inspect.Signature
    context: str | None
    others: str | None
    encoded: frozenset[str]
    encodes_others: bool
    result: Result | None

    def arguments(
        self, ctxt: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, binary: bool
    ) -> tuple[Any, dict[str, Any]]:
        """The context of a call, and what is sent for its arguments.

        Args:
            ctxt: the context, if it is none of the arguments.
            args: the arguments.
            kwargs: likewise.
            binary: binary data may be sent.

        Raises:
            TypeError: they do not fit the method's signature.
            SerializationError: one cannot be turned into plain data.
        """
        try:
            given = self.shape.bind(*args, **kwargs).arguments
        except TypeError as exc:
            raise TypeError(f"{self.name}(): {exc}") from None
        others = {} if self.others is None else given.pop(self.others, {})
        context = ctxt if self.context is None else given.pop(self.context, ctxt)
        if self.encodes_others:
            others = {name: self._plain(name, value, binary) for name, value in others.items()}
        for name in self.encoded & given.keys():
            given[name] = self._plain(name, given[name], binary)
        for name in given.keys() & others.keys():  # The signature takes the one by position, the other by name.
            raise TypeError(f"{self.name}() got multiple values for argument {name!r}, and arguments are sent by name")
        return context, {**given, **others}

    def _plain(self, name: str, value: Any, binary: bool) -> Any:
        try:
            return to_plain(value, binary=binary)
        except SerializationError as exc:
            raise SerializationError(f"the argument {name!r} of {self.name!r} {exc}") from None


class Result:
    """Makes of what a server has sent what a method is declared to return."""

    def __init__(self, kind: Any, name: str, *, has_serializer: bool) -> None:
        """Prepare it; as `Fields`.

        Raises:
            TypeError: no such result can be made.
        """
        self._name = name
        self._is_none = kind is None or kind is type(None)
        self._fields = Fields({_RESULT: kind}, has_serializer=has_serializer)

    def convert(self, value: Any) -> Any:
        """Convert a result.

        Raises:
            SerializationError: it is something else.
        """
        if self._is_none:  # A later version of the server may return something.
            return None
        try:
            return self._fields.convert({_RESULT: value})[_RESULT]
        except Mismatch as exc:
            raise SerializationError(f"{self._name} is declared to return something else: {exc}") from None


class _Results(Serializer):
    """A client's serializer for one method: it also converts what has come to the type that is declared."""

    def __init__(self, serializer: Serializer, result: Result) -> None:
        self._serializer = serializer
        self._convert = result.convert

    def serialize_entity(self, ctxt: Any, entity: Any) -> Any:
        return self._serializer.serialize_entity(ctxt, entity)

    def deserialize_entity(self, ctxt: Any, entity: Any) -> Any:
        return self._convert(self._serializer.deserialize_entity(ctxt, entity))

    def serialize_context(self, ctxt: Any) -> dict[str, Any]:
        return self._serializer.serialize_context(ctxt)

    def deserialize_context(self, ctxt: dict[str, Any]) -> Any:
        return self._serializer.deserialize_context(ctxt)


class Proxy:
    """What `RPCClient.proxy` returns. Its methods are made when they are first used."""

    def __init__(self, client: Any, api: type, methods: dict[str, Method], ctxt: Any) -> None:
        self.__client = client
        self.__api = api
        self.__methods = methods
        self.__ctxt = ctxt

    def __repr__(self) -> str:
        return f"<proxy of {self.__api.__qualname__} by {self.__client!r}>"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in self.__methods:
            near = difflib.get_close_matches(name, self.__methods, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise AttributeError(f"{self.__api.__qualname__} has no method {name!r}{hint}")
        made = _bound(self.__methods[name], self.__client, self.__ctxt)
        setattr(self, name, made)
        return made


def _bound(method: Method, client: Any, ctxt: Any) -> Callable[..., Any]:
    """A function that runs a method with a client."""
    if method.result is not None:
        client = copy.copy(client)
        client.serializer = _Results(client.serializer, method.result)
    verb = getattr(client, method.verb)
    binary = client.content_type != JSON
    name = method.name

    def run(*args: Any, **kwargs: Any) -> Any:
        context, given = method.arguments(ctxt, args, kwargs, binary=binary)
        return verb(context, name, **given)

    run.__name__ = run.__qualname__ = name
    return run


def make_proxy(client: Any, api: Any, ctxt: Any, *, asynchronous: bool) -> Any:
    """What `RPCClient.proxy` does, for clients of both kinds.

    Raises:
        TypeError: `api` is not a class, or a method of it cannot be one of such a client; the text says why.
    """
    if not isinstance(api, type):
        raise TypeError(f"a proxy is made from a class with annotated methods, not from {api!r}")
    known = _apis.setdefault(api, {})
    has_serializer = type(client.serializer) is not NoOpSerializer
    methods = known.get((asynchronous, has_serializer))
    if methods is None:
        methods = known[asynchronous, has_serializer] = _methods_of(api, asynchronous, has_serializer)
    target = getattr(api, "target", None)
    if isinstance(target, Target):
        client = client.prepare(namespace=target.namespace, version=target.version)
    return Proxy(client, api, methods, {} if ctxt is None else ctxt)


_apis: weakref.WeakKeyDictionary[type, dict[tuple[bool, bool], dict[str, Method]]] = weakref.WeakKeyDictionary()


def functions_of(api: type) -> dict[str, Callable[..., Any]]:
    """The public methods of a class, by name, as they are called: without ``self``."""
    found: dict[str, Callable[..., Any]] = {}
    for name in dir(api):
        static = inspect.getattr_static(api, name)
        if name.startswith("_"):
            continue
        if isinstance(static, staticmethod):
            found[name] = static.__func__
        elif isinstance(static, classmethod):
            found[name] = MethodType(static.__func__, api)
        elif inspect.isfunction(static):
            found[name] = MethodType(static, api)
    return found


def _methods_of(api: type, asynchronous: bool, has_serializer: bool) -> dict[str, Method]:
    methods = {name: _method(api, name, func, asynchronous, has_serializer) for name, func in functions_of(api).items()}
    if not methods:
        raise TypeError(f"{api.__qualname__} has no methods to call")
    return methods


def _method(api: type, name: str, function: Any, asynchronous: bool, has_serializer: bool) -> Method:
    shown = f"{api.__qualname__}.{name}"
    signature = read_signature(function, api, shown, takes_context=False)
    shape = inspect.signature(function)
    _check_kind(function, signature, asynchronous)
    casts = is_one_way(function)
    if casts and signature.result not in (EMPTY, None, type(None)):
        raise TypeError(f"{shown} is one way, so it returns None, and not {signature.result!r}")
    first, others = None, None
    for number, parameter in enumerate(shape.parameters.values()):
        if parameter.kind is parameter.VAR_POSITIONAL:
            raise TypeError(f"{shown} takes *{parameter.name}, and arguments are sent by name")
        if parameter.kind is parameter.VAR_KEYWORD:
            others = parameter.name
        elif number == 0 and parameter.name in _CONTEXTS and parameter.kind is not parameter.KEYWORD_ONLY:
            first = parameter.name
    kinds = {argument.name: argument.kind for argument in signature.arguments.values() if argument.name != first}
    result = None
    try:
        encoded = frozenset(name for name, kind in kinds.items() if _needs_encoding(name, kind))
        encodes_others = others is not None and _needs_encoding(others, signature.others)
        if not casts and signature.result is not EMPTY and not is_anything(signature.result):
            result = Result(signature.result, shown, has_serializer=has_serializer)
    except TypeError as exc:
        raise TypeError(f"{shown} cannot be used by a client: {exc}") from None
    verb = "cast" if casts else "multicall" if signature.stream else "call"
    return Method(name, verb, shape, first, others, encoded, encodes_others, result)


def _check_kind(function: Any, signature: Signature, asynchronous: bool) -> None:
    """Refuse a method of the other world.

    Raises:
        TypeError: its result is awaited, or iterated over, otherwise than the client's.
    """
    is_coroutine = inspect.iscoroutinefunction(function)
    if is_coroutine and signature.stream in ASYNC_STREAMS:
        raise TypeError(f"{signature.name} is a stream if it is declared with 'def', and not with 'async def'")
    is_async = is_coroutine or signature.stream in ASYNC_STREAMS
    if is_async and not asynchronous:
        raise TypeError(
            f"{signature.name} is async: it is for a client of msgbus.aio; for this one declare a plain one"
        )
    if asynchronous and not is_async:
        raise TypeError(
            f"{signature.name} is not async: for a client of msgbus.aio it is declared with 'async def', and a stream "
            "with 'def' and AsyncIterator"
        )


def _needs_encoding(name: str, kind: Any) -> bool:
    """Whether values of a type may hold more than plain data. What only a serializer knows is left to that.

    Raises:
        TypeError: msgspec cannot read the type, or its values would not arrive as they are.
    """
    if kind is EMPTY or is_anything(kind):
        return False
    try:
        contents = Contents(kind)
        refuse_mixed_keys(contents)
    except TypeError as exc:
        raise TypeError(f"{name}: {exc}") from None
    return not contents.is_plain and not contents.foreign
