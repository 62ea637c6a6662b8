"""InterceptedMethods: runs the methods of requests with a server's interceptors around them."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from functools import partial
from typing import Any

from msgbus.current import target_of
from msgbus.dispatcher import ExpectedException, RPCDispatcher
from msgbus.interceptors import InterceptedRequest, Interceptor, Kind, Once, Proceed, chain
from msgbus.message import PING_NAMESPACE
from msgbus.method_runner import MethodRunner, accept, only
from msgbus.server_call import ServerCall
from msgbus.workers import Workers


class InterceptedMethods(MethodRunner):
    """Runs plain interceptors, on the thread of the request's method and in its context."""

    def __init__(self, dispatcher: RPCDispatcher, workers: Workers, interceptors: Sequence[Interceptor]) -> None:
        """`interceptors`: the first is the outermost."""
        super().__init__(dispatcher, workers, None)
        self._interceptors = interceptors

    def _run_plain(self, call: ServerCall, streams: bool) -> Any:
        run = super()._run_plain
        if is_built_in(call):
            return run(call, streams)
        accept(call)
        once, expected = Once(), ExpectedErrors()
        items: Generator[Any, Any, Any] = only(None)
        shown: Generator[Any, None, None] | None = None

        def last(request: InterceptedRequest) -> Any:
            nonlocal items, shown
            once.use(repr(request.method))
            take_changes(call, request)
            result = run(call, streams)
            if not streams:
                return result
            items = result if isinstance(result, Generator) else only(result)
            shown = expected.each(items)
            return shown

        try:
            result = chain(self._interceptors, last, expected.around)(request_for(call, streams))
        except BaseException as exc:
            expected.restore(exc)
            raise
        finally:
            once.end()
        if not streams:
            return result
        if result is shown:
            return items
        restored = _each_restored(result, items, expected)
        next(restored)
        return restored


class ExpectedErrors:
    """Lets interceptors see the exceptions that a method raises as expected ones, and not what they are wrapped in."""

    def __init__(self) -> None:
        self._wrappers: list[ExpectedException] = []

    def unwrap(self, wrapper: ExpectedException) -> BaseException:
        """The exception in a wrapper, which is kept for `restore`."""
        error = wrapper.exc_info[1]
        if error is None:
            return wrapper
        self._wrappers.append(wrapper)
        return error

    def restore(self, error: BaseException) -> None:
        """To be called with what the interceptors have raised.

        Raises:
            ExpectedException: it is an expected one.
        """
        for wrapper in self._wrappers:
            if wrapper.exc_info[1] is error:
                raise wrapper from None

    def around(self, proceed: Proceed) -> Proceed:
        """What an interceptor proceeds with: `proceed`, with its exceptions unwrapped."""
        return partial(self._proceed, proceed)

    def _proceed(self, proceed: Proceed, request: InterceptedRequest) -> Any:
        try:
            return proceed(request)
        except ExpectedException as exc:
            raise self.unwrap(exc) from None

    def each(self, items: Generator[Any, Any, Any]) -> Generator[Any, None, None]:
        """A method's items, with its exceptions unwrapped."""
        try:
            yield from items
        except ExpectedException as exc:
            raise self.unwrap(exc) from None


def _each_restored(
    result: Any, items: Generator[Any, Any, Any], expected: ExpectedErrors
) -> Generator[Any, None, None]:
    """The items that interceptors have made of those of the method. Both are closed in any case.

    The first item is a None for nobody, to be taken before this is given out: to close a generator that has not begun
    is to run nothing of it.
    """
    made = result if isinstance(result, Iterator) else only(result)
    try:
        try:
            yield None
        except GeneratorExit:
            if (close := getattr(made, "close", None)) is not None:
                close()
            raise
        yield from made
    except BaseException as exc:
        expected.restore(exc)
        raise
    finally:
        items.close()


def is_built_in(call: ServerCall) -> bool:
    """Whether msgbus itself answers the request: it is not intercepted."""
    return call.request.namespace == PING_NAMESPACE


def request_for(call: ServerCall, streams: bool) -> InterceptedRequest:
    """A request that runs, for its interceptors."""
    request = call.request
    kind: Kind = "multicall" if streams else "call" if call.is_call else "cast"
    hints = request.hints
    # From now on `current_request` reads it there.
    call.metadata = {} if hints is None or hints.metadata is None else hints.metadata
    target = target_of(call.delivery.address, request)
    return InterceptedRequest(kind, request.method, target, request.context, request.args, call.metadata, call)


def take_changes(call: ServerCall, request: InterceptedRequest) -> None:
    """Have the method see what the interceptors have changed."""
    call.request.context, call.request.args, call.metadata = request.context, request.args, request.metadata
