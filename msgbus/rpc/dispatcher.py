"""RpcDispatcher of the old API, and the dispatcher for a consumer's proxy, which can be any object."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

from msgbus.awaitables import refuse_async
from msgbus.dispatcher import RPCDispatcher
from msgbus.exceptions import UnsupportedVersion
from msgbus.message import PING_NAMESPACE, Request
from msgbus.rpc.context import RpcContext
from msgbus.rpc.messages import EntitySerializer
from msgbus.target import Target


class RpcDispatcher:
    """Runs methods of callback objects. Thread-safe.

    A callback says what it implements in ``RPC_API_VERSION`` (default ``"1.0"``) and ``RPC_API_NAMESPACE`` (default:
    none). Only public methods are run.

    Args:
        callbacks: the objects, in the order in which they are asked.
        serializer: has ``serialize_entity(context, entity)`` for results and ``deserialize_entity`` for arguments.

    Attributes:
        dispatcher: what runs the methods.

    Raises:
        TypeError: a callback's version is invalid, or one of its public methods or the serializer is ``async``.
    """

    def __init__(self, callbacks: Sequence[object], serializer: Any = None) -> None:
        self.dispatcher = RPCDispatcher([], None if serializer is None else EntitySerializer(serializer))
        for callback in callbacks:
            namespace = getattr(callback, "RPC_API_NAMESPACE", None)
            version = getattr(callback, "RPC_API_VERSION", None) or "1.0"
            self.dispatcher.add_endpoint(callback, Target(namespace=namespace, version=version))

    def dispatch(
        self, ctxt: Any, version: str | None, method: str, namespace: str | None = None, /, **kwargs: Any
    ) -> Any:
        """Run a method as ``method(ctxt, **kwargs)`` on the first callback that has it, and return its result.

        Args:
            ctxt: the caller's context.
            version: that the caller needs; None means 1.0.
            method: its name.
            namespace: of the interface that the method belongs to.
            kwargs: its arguments.

        Raises:
            UnsupportedRpcVersion: no callback has the namespace in a compatible version.
            NoSuchMethod (AttributeError): a callback has, and does not have the method.
            AccessDenied: the method is not public.
            InvalidArguments: the arguments do not fit the method.
            Exception: what the method raises.
        """
        return self.dispatcher.dispatch(Request(method, kwargs, namespace=namespace, version=version, context=ctxt))


class ProxyDispatcher(RPCDispatcher):
    """Passes requests to the ``proxy`` of a consumer: through its ``dispatch``, or to its public methods.

    Raises:
        TypeError: its ``dispatch`` has another signature, a version is invalid, or what would be called is ``async``.
    """

    def __init__(self, proxy: object) -> None:
        super().__init__([])
        if proxy is None:
            raise TypeError("the proxy of a consumer is an object, not None")
        refuse_async(f"dispatch of {type(proxy).__name__}", getattr(proxy, "dispatch", None))
        if not callable(getattr(proxy, "dispatch", None)):
            proxy = RpcDispatcher([proxy])
        self._callbacks = proxy.dispatcher if isinstance(proxy, RpcDispatcher) else None
        self._run: Any = proxy.dispatch  # type: ignore[attr-defined]  # it was just made sure that it has one
        self._namespaces = _takes(self._run, None, "1.0", "method", None)
        if not self._namespaces and not _takes(self._run, None, "1.0", "method"):
            raise TypeError(
                f"the dispatch of {proxy!r} does not take (context, version, method, **args): if it is a method for "
                "callers, give the consumer RpcDispatcher([proxy])"
            )

    def public_methods(self) -> Iterator[tuple[object, Target, str, Any, bool]]:
        """The methods of the callbacks; none if the proxy has a ``dispatch`` of its own, which knows them alone."""
        return iter(()) if self._callbacks is None else self._callbacks.public_methods()

    def may_have(self, namespace: str | None, name: str) -> bool:
        """As of the callbacks; a proxy with a ``dispatch`` of its own may have any method."""
        return self._callbacks is None or namespace == PING_NAMESPACE or self._callbacks.may_have(namespace, name)

    def dispatch(self, request: Request) -> Any:
        """Run a request, with the caller's context as an `RpcContext`."""
        if request.namespace == PING_NAMESPACE:
            return super().dispatch(request)
        context = RpcContext.from_dict(request.context)
        version = request.version or "1.0"
        if self._namespaces:
            return self._run(context, version, request.method, request.namespace, **request.args)
        if request.namespace is not None:
            raise UnsupportedVersion(f"{version} of namespace {request.namespace}", request.method)
        return self._run(context, version, request.method, **request.args)


def _takes(function: Any, *arguments: Any) -> bool:
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # It is not written in Python, and has no signature to read.
        return True
    return True
