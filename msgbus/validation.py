"""Typed endpoints: arguments are checked and converted by the annotations of a method, and results made plain data.

All that can be known of a method is worked out once, when its server is made. Then it has a wrapper, which the
dispatcher calls in its place: so methods that are not validated cost nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import aclosing, closing
from functools import cached_property, wraps
from types import MemberDescriptorType, ModuleType
from typing import Any, TypeVar

from msgbus import current
from msgbus.arguments import begin
from msgbus.awaitables import is_async, refuse_awaitable
from msgbus.conversion import Contents, Fields, is_anything, is_record, refuse_mixed_keys, to_plain
from msgbus.exceptions import InvalidArguments, SerializationError
from msgbus.foreign import printable
from msgbus.message import JSON
from msgbus.mismatch import Mismatch
from msgbus.signatures import EMPTY, Signature, function_of, mark_of, read_signature

T = TypeVar("T", bound=Callable[..., Any])
Method = Callable[..., Any]
_MARK = "_msgbus_validated"
_OTHER = "argument"


def validated(thing: T) -> T:
    """Decorate a method, or a class for all its methods: arguments are checked and converted by their annotations.

    ::

        @msgbus.validated
        class Images:
            def resize(self, ctxt, image: Image, size: tuple[int, int]) -> Thumbnail: ...

    An argument that does not fit its annotation is an `InvalidArguments` for the caller, which says where in the
    argument and what, and the method does not run. Results, and the items of generators, are turned into plain data.
    Arguments and results without an annotation, or with `Any`, stay as they are.

    It changes nothing where the method is called directly. A class's mark is inherited, a method's is not.
    """
    marked: Any = thing.__func__ if isinstance(thing, staticmethod | classmethod) else thing
    setattr(marked, _MARK, True)
    return thing


def validates_all(endpoint: object) -> bool:
    """Whether all methods of an endpoint are to be checked, since its class is marked."""
    return inspect.getattr_static(endpoint, _MARK, False) is True


def methods_to_validate(endpoint: object, *, everything: bool) -> Iterator[tuple[str, Method]]:
    """The methods of an endpoint whose arguments are to be checked: all, or those that are marked.

    Those that ``__getattr__`` or a descriptor makes are not among them, if they cannot be had now. No property is
    evaluated; nor is anything else that is not marked, unless it is for `everything`.
    """
    for name in dir(endpoint):
        static = inspect.getattr_static(endpoint, name, None)
        if name.startswith("__") or isinstance(static, property | cached_property):
            continue
        if isinstance(static, MemberDescriptorType):  # made by __slots__: reading it runs no code
            static = getattr(endpoint, name, None)
        if not everything and mark_of(static, _MARK) is not True:
            continue
        try:
            method = getattr(endpoint, name)
        except Exception:  # noqa: S112 - a descriptor may do anything; it is asked again when it is called
            continue
        if not callable(method) or isinstance(method, type):
            continue
        if isinstance(endpoint, ModuleType) and getattr(method, "__module__", None) != endpoint.__name__:
            continue  # It is imported there.
        yield name, method


def with_validation(endpoint: object, name: str, method: Method, *, has_serializer: bool) -> Method:
    """A method's wrapper; the method itself if it has no annotations that matter.

    Args:
        endpoint: whose method it is.
        name: its name.
        method: the method, bound.
        has_serializer: arguments may be of any class, since a serializer makes them.

    Raises:
        TypeError: an annotation cannot be resolved, or is of a type that cannot be made of plain data.
    """
    owner = endpoint if isinstance(endpoint, type) else type(endpoint)
    shown = endpoint.__name__ if isinstance(endpoint, ModuleType) else owner.__qualname__
    signature = read_signature(method, owner, f"{shown}.{name}")
    take, give = _Arguments(signature, has_serializer=has_serializer), _giver(signature, has_serializer)
    if not take and give is None:
        return method
    return _wrapper(method, take, give or _as_it_is)


def _as_it_is(value: Any) -> Any:
    return value


class _Arguments:
    """Checks and converts what a method is called with. False if there is nothing to check."""

    def __init__(self, signature: Signature, *, has_serializer: bool) -> None:
        types = {name: argument.kind for name, argument in signature.arguments.items()}
        self._fields = _fields_of(types, signature, has_serializer)
        self._known = frozenset(types)
        others = EMPTY if signature.others is None else signature.others
        self._others = _fields_of({_OTHER: others}, signature, has_serializer)
        context = signature.context
        self._context_name = "" if context is None else context.name
        self._context: Fields | None = None
        if context is not None and is_record(context.kind):
            self._context = _fields_of({context.name: context.kind}, signature, has_serializer)

    def __bool__(self) -> bool:
        return not self._fields is self._others is self._context is None

    def __call__(self, context: Any, args: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return the context and the arguments in their types.

        Raises:
            InvalidArguments: one does not fit its type.
        """
        try:
            if self._context is not None:
                name = self._context_name
                context = self._context.convert({name: context})[name]
            if self._others is not None:
                for name in args.keys() - self._known:
                    args[name] = self._convert_other(self._others, name, args[name])
            return context, args if self._fields is None else self._fields.convert(args)
        except Mismatch as exc:
            raise InvalidArguments(str(exc)) from None

    @staticmethod
    def _convert_other(fields: Fields, name: str, value: Any) -> Any:
        try:
            return fields.convert({_OTHER: value})[_OTHER]
        except Mismatch as exc:
            raise Mismatch(f"{printable(name, 100)}{str(exc).removeprefix(_OTHER)}") from None


def _fields_of(types: dict[str, Any], signature: Signature, has_serializer: bool) -> Fields | None:
    """A conversion of the values whose types are known; None if none is."""
    known = {name: kind for name, kind in types.items() if kind is not EMPTY and not is_anything(kind)}
    if not known:
        return None
    try:
        return Fields(known, has_serializer=has_serializer)
    except TypeError as exc:
        raise TypeError(
            f"{signature.name} cannot be validated: {exc} (or keep the method from being called, by an underscore "
            "before its name)"
        ) from None


def _giver(signature: Signature, has_serializer: bool) -> Callable[[Any], Any] | None:
    """What turns a method's results or items into plain data; None if they are left as they are."""
    if signature.result is EMPTY or is_anything(signature.result):
        return None
    try:
        contents = Contents(signature.result)
    except TypeError:  # msgspec cannot read such a type, and a result is not checked against it.
        contents = None
    if contents is not None:
        try:
            refuse_mixed_keys(contents)
        except TypeError as exc:
            raise TypeError(f"{signature.name} cannot be validated: result: {exc}") from None
        if contents.is_plain or (contents.foreign and has_serializer):  # What is foreign is for the serializer.
            return None
    what = "an item" if signature.stream else "the result"
    method = signature.name

    def give(value: Any) -> Any:
        if type(value) in _UNCHANGED:
            return value
        try:
            return to_plain(value, binary=_keeps_binary())
        except SerializationError as exc:
            refuse_awaitable(f"the method {method!r} returned", value)
            raise SerializationError(f"{what} of {method!r} {exc}") from None

    return give


_UNCHANGED = frozenset({type(None), bool, int, float, str})


def _keeps_binary() -> bool:
    """Whether the answer to the request that runs here can hold binary data."""
    running = current.running.get()
    return running is None or running.delivery.message.content_type != JSON


def _wrapper(method: Method, take: _Arguments, give: Callable[[Any], Any]) -> Method:
    """What is called in the place of a method; it is ``async`` where the method is."""
    if not is_async(method):

        @wraps(method)
        def run(context: Any, /, **args: Any) -> Any:
            context, args = take(context, args)
            result = method(context, **args)
            return _each(give, result) if isinstance(result, Generator) else give(result)

        return run

    if inspect.isasyncgenfunction(function_of(method)):

        @wraps(method)
        async def run_async_generator(context: Any, /, **args: Any) -> AsyncGenerator[Any, None]:
            context, args = take(context, args)
            async with aclosing(begin(method, (context,), args)) as items:
                async for item in items:
                    yield give(item)

        return run_async_generator

    @wraps(method)
    async def run_async(context: Any, /, **args: Any) -> Any:
        context, args = take(context, args)
        return give(await begin(method, (context,), args))

    return run_async


def _each(give: Callable[[Any], Any], items: Generator[Any, Any, Any]) -> Generator[Any, None, None]:
    with closing(items):
        for item in items:
            yield give(item)
