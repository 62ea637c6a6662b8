"""RPCDispatcher: finds the endpoint's method for a namespace, version and name, and runs it."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from contextlib import aclosing, closing
from functools import cached_property, wraps
from types import CoroutineType, ModuleType, TracebackType
from typing import Any, ParamSpec, TypeVar

from msgbus.arguments import begin, forgotten_context
from msgbus.awaitables import PLAIN, async_methods, is_async, refuse_async, refuse_awaitable
from msgbus.endpoints import check_endpoint, check_endpoints
from msgbus.exceptions import AccessDenied, InvalidArguments, NoSuchMethod, UnsupportedVersion
from msgbus.message import PING_NAMESPACE, Request
from msgbus.serializer import NoOpSerializer, Serializer, check_serializer
from msgbus.target import Target
from msgbus.validation import methods_to_validate, validates_all, with_validation
from msgbus.versions import check_since, methods_since, parse_version, version_is_compatible

P = ParamSpec("P")
R = TypeVar("R")

Method = Callable[..., Any]
STOCK_PING = "oslo_rpc_server_ping"
"""The method, in no namespace, by which a stock oslo.messaging client pings a server."""
_CACHED_METHODS = 1000
_OWN_FRAMES = (__name__, "msgbus.validation")
"""Modules whose functions call an endpoint's method."""


class ExpectedException(Exception):
    """Carries an exception that is part of a method's interface: it goes to the client and is not logged as an error.

    Attributes:
        exc_info: as of `sys.exc_info`.
    """

    def __init__(self) -> None:
        self.exc_info: tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]
        self.exc_info = sys.exc_info()


def expected_exceptions(*types: type[BaseException]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate an endpoint's method whose exceptions of `types` (and subclasses) are answers rather than faults."""

    def decorate(func: Callable[P, R]) -> Callable[P, R]:
        if inspect.isgeneratorfunction(func):

            def iterate(items: Any) -> Any:
                try:
                    return (yield from items)
                except types:
                    raise _as_expected() from None

            @wraps(func)
            def run_generator(*args: P.args, **kwargs: P.kwargs) -> Any:
                return iterate(func(*args, **kwargs))  # Arguments that do not fit are refused here, not later.

            return run_generator

        if inspect.isasyncgenfunction(func):

            @wraps(func)
            async def run_async_generator(*args: P.args, **kwargs: P.kwargs) -> Any:
                try:
                    async with aclosing(begin(func, args, kwargs)) as items:
                        async for item in items:
                            yield item
                except types:
                    raise _as_expected() from None

            return run_async_generator

        if inspect.iscoroutinefunction(func):  # The wrapper is one too, so that it is recognized.

            @wraps(func)
            async def run_coroutine(*args: P.args, **kwargs: P.kwargs) -> Any:
                try:
                    return await begin(func, args, kwargs)
                except types:
                    raise _as_expected() from None

            return run_coroutine  # type: ignore[return-value]  # R is a coroutine

        @wraps(func)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return func(*args, **kwargs)
            except types:
                raise _as_expected() from None

        return run

    return decorate


def _as_expected() -> ExpectedException:
    """The exception that is being handled, as an expected one. That of another decorated method is one already."""
    error = sys.exc_info()[1]
    return error if isinstance(error, ExpectedException) else ExpectedException()


def expose(func: Callable[P, R]) -> Callable[P, R]:
    """Mark a method as callable under `ExplicitRPCAccessPolicy`."""
    func.exposed = True  # type: ignore[attr-defined]  # functions take attributes; typing does not say so
    return func


class RPCAccessPolicyBase:
    """Decides which methods of an endpoint clients may call. Pass a subclass to `get_rpc_server`."""

    def is_allowed(self, endpoint: object, method: str) -> bool:
        """Whether `method` of `endpoint` may be called."""
        raise NotImplementedError


class LegacyRPCAccessPolicy(RPCAccessPolicyBase):
    """Everything may be called, private methods too."""

    def is_allowed(self, endpoint: object, method: str) -> bool:
        """Yes."""
        return True


class DefaultRPCAccessPolicy(RPCAccessPolicyBase):
    """Methods whose names do not begin with an underscore may be called."""

    def is_allowed(self, endpoint: object, method: str) -> bool:
        """Whether the name begins without an underscore."""
        return not method.startswith("_")


class ExplicitRPCAccessPolicy(RPCAccessPolicyBase):
    """Only methods that are marked with `expose` may be called."""

    def is_allowed(self, endpoint: object, method: str) -> bool:
        """Whether the method was decorated with `expose`."""
        return bool(getattr(getattr(endpoint, method, None), "exposed", False))


class RPCDispatcher:
    """Runs requests on endpoints. Thread-safe.

    An endpoint is any object; a `Target` in its attribute ``target`` gives the namespace and version of its methods
    (default: none, and 1.0), which are called as ``method(context, **arguments)``.

    Attributes:
        asynchronous: methods may be ``async``; `dispatch_async` runs them.
        has_async: there is such a method, and it may be called.
        answers_stock_ping: the ping of oslo.messaging is answered, unless an endpoint has a method of that name.
    """

    def __init__(
        self,
        endpoints: Sequence[object],
        serializer: Serializer | None = None,
        access_policy: type[RPCAccessPolicyBase] | None = None,
        *,
        asynchronous: bool = False,
        validate: bool = False,
    ) -> None:
        """Check and keep the endpoints; `asynchronous`: their methods may be ``async``; `validate`: as `validated`.

        Raises:
            TypeError: an endpoint's ``target`` is not a `Target`, its version is invalid, the policy is not a subclass
                of `RPCAccessPolicyBase`, something is ``async`` that is called without awaiting it (without
                `asynchronous` each method), `since` of a method does not fit the endpoint's version, or an annotation
                of a method that is to be validated cannot be used.
        """
        policy = access_policy or DefaultRPCAccessPolicy
        given: object = policy
        if not (isinstance(given, type) and issubclass(given, RPCAccessPolicyBase)):
            raise TypeError(f"access_policy has to be a subclass of RPCAccessPolicyBase, not {policy!r}")
        self.serializer = serializer or NoOpSerializer()
        check_serializer(self.serializer)
        self._policy = policy()
        refuse_async(f"is_allowed of {policy.__name__}", self._policy.is_allowed)
        self.asynchronous = asynchronous
        self.has_async = False
        self.answers_stock_ping = False
        self._endpoints: list[tuple[object, Target]] = []
        self._found: dict[tuple[str | None, str | None, str], Method] = {}
        self._is_async: dict[tuple[str | None, str | None, str], bool] = {}  # Not by method: it may be unhashable.
        self._validated: dict[tuple[int, str], Method] = {}  # in the place of an endpoint's method
        self._validates: set[int] = set()  # endpoints all of whose methods are validated
        check_endpoints(endpoints)
        for endpoint in endpoints:
            self.add_endpoint(endpoint, validate=validate)

    def add_endpoint(self, endpoint: object, target: Target | None = None, *, validate: bool = False) -> None:
        """Serve an endpoint's methods too; endpoints that were added earlier are searched first.

        Args:
            endpoint: any object.
            target: its namespace and version; None means those of its attribute ``target``.
            validate: check and convert the arguments of all of its methods, as `validated` does.

        Raises:
            TypeError: it is a class whose methods need an object, its ``target`` is not a `Target`, the version in that
                is invalid, a method that may be called is ``async``, `since` of one does not fit the version, or an
                annotation cannot be used.
        """
        check_endpoint(endpoint)
        if target is None:
            target = getattr(endpoint, "target", None) or Target()
        if not isinstance(target, Target):
            raise TypeError(f"the attribute 'target' of endpoint {endpoint!r} has to be a Target, not {target!r}")
        try:
            parse_version(target.version or "1.0")
        except ValueError as exc:
            raise TypeError(f"endpoint {endpoint!r}: {exc}") from None
        for name in async_methods(endpoint):
            if self._allows(endpoint, name):
                self.has_async = True
                if self.asynchronous:
                    break
                raise TypeError(
                    f"{_name_of(endpoint)}.{name} is async, and this server runs methods on threads, without awaiting "
                    "them: use msgbus.get_rpc_server with executor='asyncio', make it a plain one, or keep it from "
                    "being called, by an underscore before its name or by an access policy"
                )
        for name, added in methods_since(endpoint):
            if self._allows(endpoint, name):
                check_since(f"{_name_of(endpoint)}.{name}", added, target.version or "1.0")
        validate = validate or validates_all(endpoint)
        wrappers = {
            (id(endpoint), name): self._with_validation(endpoint, name, method)
            for name, method in methods_to_validate(endpoint, everything=validate)
            if self._allows(endpoint, name)
        }
        self._validated.update(wrappers)
        if validate:
            self._validates.add(id(endpoint))
        self._endpoints.append((endpoint, target))

    def _with_validation(self, endpoint: object, name: str, method: Method) -> Method:
        has_serializer = type(self.serializer) is not NoOpSerializer
        return with_validation(endpoint, name, method, has_serializer=has_serializer)

    def find(self, request: Request) -> Method:
        """The method that serves a request.

        Raises:
            UnsupportedVersion: no endpoint has the namespace in a fitting version.
            NoSuchMethod: such an endpoint exists and lacks the method.
            AccessDenied: the method exists and may not be called.
        """
        key = (request.namespace, request.version, request.method)
        method = self._found.get(key)
        if method is None:
            method = self._search(*key)
            if len(self._found) >= _CACHED_METHODS:  # Clients choose the version: it must not fill the memory.
                self._found.clear()
                self._is_async.clear()
            self._found[key] = method
        return method

    def in_namespace(self, namespace: str) -> list[object]:
        """The endpoints that answer to a namespace."""
        return [endpoint for endpoint, target in self._endpoints if namespace in target.accepted_namespaces]

    def may_have(self, namespace: str | None, name: str) -> bool:
        """Whether there is a method of that name, in any version, that may be called.

        A subclass that dispatches in a way of its own is taken to have all methods, unless it says otherwise here.
        """
        if type(self).dispatch is not RPCDispatcher.dispatch:
            return True
        if name == STOCK_PING and namespace is None and self.answers_stock_ping:
            return True
        return any(
            namespace in target.accepted_namespaces
            and _method(endpoint, name) is not None
            and self._allows(endpoint, name)
            for endpoint, target in self._endpoints
        )

    def runs_async(self, request: Request) -> bool:
        """Whether `dispatch_async` has to run a request. Raises as `find` does."""
        method = self.find(request)
        key = (request.namespace, request.version, request.method)
        known = self._is_async.get(key)
        if known is None:
            known = self._is_async[key] = is_async(method)
        return known

    def _search(self, namespace: str | None, version: str | None, name: str) -> Method:
        asked = version or "1.0"
        compatible = denied = False
        versions = []
        for endpoint, target in self._endpoints:
            if namespace not in target.accepted_namespaces:
                continue
            versions.append(target.version or "1.0")
            try:
                if not version_is_compatible(target.version or "1.0", asked):
                    continue
            except ValueError:
                continue
            compatible = True
            method = _method(endpoint, name)
            if method is None:
                continue
            if self._allows(endpoint, name):
                wrapper = self._validated.get((id(endpoint), name))
                if wrapper is None and id(endpoint) in self._validates:  # a method that __getattr__ has made
                    wrapper = self._with_validation(endpoint, name, method)
                return wrapper or method
            denied = True
        if name == STOCK_PING and namespace is None and self.answers_stock_ping:
            return _pong
        if denied:
            raise AccessDenied(f"RPC method {name} may not be called from outside")
        if compatible:
            near = self._nearest(namespace, name)
            raise (
                NoSuchMethod(name, near)
                if near
                else NoSuchMethod(name, None, *self._nearest_namespace(namespace, name))
            )
        if versions:
            raise UnsupportedVersion(asked, name, namespace, versions)
        raise UnsupportedVersion(asked, name, namespace, versions, *self._nearest_namespace(namespace, name))

    def _nearest_namespace(self, namespace: str | None, name: str) -> list[str]:
        """A list with the namespace that may have been meant: it has that method, or is spelt nearly so; or empty."""
        known = {
            found: endpoint
            for endpoint, target in self._endpoints
            for found in target.accepted_namespaces
            if found and found not in (namespace, PING_NAMESPACE)
        }
        near = difflib.get_close_matches(namespace or "", sorted(known), n=1)
        if near:
            return near
        has = [found for found, endpoint in known.items() if self._may_be_meant(endpoint, name)]
        return has[:1]

    def _allows(self, endpoint: object, name: str) -> bool:
        allowed = self._policy.is_allowed(endpoint, name)
        refuse_awaitable("the access policy returned", allowed)  # A coroutine would count as true.
        return bool(allowed)

    def _nearest(self, namespace: str | None, name: str) -> str | None:
        """The method that may have been meant, of those that may be called."""
        known = {
            found
            for endpoint, target in self._endpoints
            if namespace in target.accepted_namespaces
            for found in dir(endpoint)
            if self._may_be_meant(endpoint, found)
        }
        near = difflib.get_close_matches(name, sorted(known), n=1)
        return near[0] if near else None

    def _may_be_meant(self, endpoint: object, name: str) -> bool:
        try:
            return not name.startswith("_") and bool(_method(endpoint, name)) and self._allows(endpoint, name)
        except Exception:  # A descriptor may do anything. The request is not about this name.
            return False

    def public_methods(self) -> Iterator[tuple[object, Target, str, Method, bool]]:
        """The methods that may be called, without private ones and those of msgbus itself.

        Each comes with its endpoint, the target, its name, and whether its arguments are checked.
        """
        for endpoint, target in self._endpoints:
            if target.namespace == PING_NAMESPACE:
                continue
            for name in dir(endpoint):
                try:
                    method = None if name.startswith("_") else _method(endpoint, name)
                except Exception:  # noqa: S112 - a descriptor may do anything
                    continue
                if method is None or isinstance(method, type) or not self._allows(endpoint, name):
                    continue
                yield endpoint, target, name, method, self._validated.get((id(endpoint), name), method) != method

    def dispatch(self, request: Request) -> Any:
        """Run a request and return the method's result, serialized. A generator comes back as one, not run yet.

        Raises:
            RPCDispatcherError: as for `find`, `InvalidArguments` where the arguments do not fit the signature, and if
                the method returned something that would have to be awaited.
            Exception: whatever the method raises.
        """
        context, result = self._call(request)
        if type(result) not in PLAIN:
            refuse_awaitable(f"the method {request.method!r} returned", result)
        serializer = self.serializer
        if type(serializer) is NoOpSerializer:
            return result
        if isinstance(result, Generator):
            return _serialize_each(serializer, context, each_plain(request.method, result))
        return serializer.serialize_entity(context, result)

    def _call(self, request: Request) -> tuple[Any, Any]:
        """Call the method. Returns the context that it was given, and what it returned: of an async one a coroutine."""
        method = self.find(request)
        serializer, context, args = self.serializer, request.context, request.args
        if type(serializer) is not NoOpSerializer:
            context = serializer.deserialize_context(context)
            args = {name: serializer.deserialize_entity(context, value) for name, value in args.items()}
        try:
            return context, method(context, **args)
        except TypeError as exc:
            if type(exc) is TypeError and _is_of_the_call(exc):
                raise InvalidArguments(f"{exc}{forgotten_context(method, args)}") from None
            raise

    async def dispatch_async(self, request: Request) -> Any:
        """Run a request whose method is ``async``, and return its result, serialized.

        An asynchronous generator comes back as one, not run yet. The serializer is called on the event loop.

        Raises:
            RPCDispatcherError, Exception: as for `dispatch`.
        """
        context, result = self._call(request)
        serializer = self.serializer
        is_plain = type(serializer) is NoOpSerializer
        if type(result) is not CoroutineType and isinstance(result, AsyncGenerator):  # To ask an ABC is slow.
            return result if is_plain else _serialize_each_async(serializer, context, result)
        value = await result
        return value if is_plain else serializer.serialize_entity(context, value)


def _pong(_context: object, **_arguments: object) -> str:
    """The answer to a ping of oslo.messaging."""
    return "pong"


def _method(endpoint: object, name: str) -> Method | None:
    """The callable of that name, or None. A property is not evaluated: a request must not run its code."""
    if isinstance(getattr(type(endpoint), name, None), property | cached_property):
        return None
    found = getattr(endpoint, name, None)
    return found if callable(found) and not isinstance(found, Target) else None


def _name_of(endpoint: object) -> str:
    named = endpoint if isinstance(endpoint, type | ModuleType) else type(endpoint)
    return str(getattr(named, "__qualname__", named.__name__))


def _is_of_the_call(exc: TypeError) -> bool:
    """Whether it was raised by the call of a method itself, and not inside the method.

    Then there is no frame below that of `dispatch`, or below our decorator's or wrapper's.
    """
    tb = exc.__traceback__
    while tb is not None and tb.tb_frame.f_globals.get("__name__") in _OWN_FRAMES:
        tb = tb.tb_next
    return tb is None


def each_plain(name: str, items: Generator[Any, Any, Any]) -> Generator[Any, None, None]:
    """Pass on the items that a method yields, and refuse those that would have to be awaited.

    Raises:
        RPCDispatcherError: an item would have to be awaited.
    """
    with closing(items):
        for item in items:
            if type(item) not in PLAIN:
                refuse_awaitable(f"the method {name!r} yielded", item)
            yield item


def _serialize_each(
    serializer: Serializer, context: Any, items: Generator[Any, Any, Any]
) -> Generator[Any, None, None]:
    with closing(items):
        for item in items:
            yield serializer.serialize_entity(context, item)


async def _serialize_each_async(
    serializer: Serializer, context: Any, items: AsyncGenerator[Any, None]
) -> AsyncGenerator[Any, None]:
    async with aclosing(items):
        async for item in items:
            yield serializer.serialize_entity(context, item)
