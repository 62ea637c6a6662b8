"""What users of the classic rpc API rely on: the same checks for each driver.

In memory by tests/rpc/test_rpc.py, and with every driver by tests/functional/test_rpc.py, where a driver joins.
"""

from __future__ import annotations

import functools
import itertools
import queue
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from oslo_config import cfg

from msgbus import rpc
from msgbus.rpc import common as rpc_common
from msgbus.rpc import dispatcher as rpc_dispatcher
from tests.support import EVENT_TIMEOUT

CONTEXT = rpc_common.CommonRpcContext(user="fake_user", pw="fake_pw")


class ApiError(Exception):
    """An exception of the service's own."""

    def __init__(self, message: str | None = None, code: str | None = None) -> None:
        self.kwargs = {"code": code}
        self.code = code
        super().__init__(message)


class Receiver:
    """A proxy in the manner of the old tests."""

    def __init__(self) -> None:
        self.cast_values: list[Any] = []
        self.cast_came = threading.Event()
        self.release = threading.Event()
        self.answer = {number: threading.Event() for number in (1, 2, 3)}
        self.running = threading.Semaphore(0)
        self.generator_closed = threading.Event()

    def echo(self, context: Any, value: Any) -> Any:
        return value

    def fortytwo(self, context: Any) -> int:
        return 42

    def context(self, context: Any, value: Any) -> Any:
        return context.to_dict()

    def user(self, context: Any) -> Any:
        return context.user

    def synced_echo(self, context: Any, value: Any, callid: int) -> Any:
        self.running.release()
        assert self.answer[callid].wait(EVENT_TIMEOUT)
        return value

    def multicall_three_nones(self, context: Any, value: Any) -> Iterator[None]:
        yield None
        yield None
        yield None

    def echo_three_times_yield(self, context: Any, value: int) -> Iterator[int]:
        yield value
        yield value + 1
        yield value + 2

    def count_for_ever(self, context: Any) -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            self.generator_closed.set()

    def two_then_raise(self, context: Any) -> Iterator[int]:
        yield 1
        yield 2
        raise KeyError("third")

    def fail(self, context: Any, value: Any) -> None:
        raise NotImplementedError(value)

    def fail_converted(self, context: Any, value: Any) -> None:
        raise ApiError(value, code="500")

    def block(self, context: Any) -> str:
        self.release.wait(EVENT_TIMEOUT)
        return "late"

    def note(self, context: Any, value: Any = "nothing") -> None:
        self.cast_values.append(value)
        self.cast_came.set()

    def nested(self, context: Any, topic: str) -> Any:
        return rpc.call(context, topic, {"method": "echo", "args": {"value": context.user}})


class RpcChecks:
    """Subclass it with a fixture `conf` that gives a parsed configuration which names a message system."""

    @pytest.fixture
    def receiver(self, conf: cfg.ConfigOpts) -> Iterator[Receiver]:
        """A receiver on the topic ``test``, as any of its servers, as ``test.host1``, and as one of all."""
        rpc.init(conf)
        receiver = Receiver()
        conn = rpc.create_connection(new=True)
        proxy = rpc_dispatcher.RpcDispatcher([receiver])
        conn.create_consumer("test", proxy, fanout=False)
        conn.create_consumer("test.host1", proxy, fanout=False)
        conn.create_consumer("test", proxy, fanout=True)
        conn.consume_in_thread()
        try:
            yield receiver
        finally:
            receiver.release.set()
            conn.close()
            rpc.cleanup()

    def test_call_succeeds(self, receiver: Receiver) -> None:
        """A call returns what the method returns."""
        assert rpc.call(CONTEXT, "test", {"method": "echo", "args": {"value": 42}}) == 42

    def test_call_of_one_host(self, receiver: Receiver) -> None:
        """The topic ``test.host1`` is that server's."""
        topic = rpc.queue_get_for(CONTEXT, "test", "host1")
        assert rpc.call(CONTEXT, topic, {"method": "echo", "args": {"value": 42}}) == 42

    def test_call_of_a_missing_host_fails(self, receiver: Receiver) -> None:
        """An error says so at once; the other servers of the topic do not stand in."""
        with pytest.raises(rpc.RPCException, match="host2"):
            rpc.call(CONTEXT, "test.host2", {"method": "echo", "args": {"value": 42}})

    def test_call_succeeds_despite_missing_args(self, receiver: Receiver) -> None:
        """A message needs no 'args'."""
        assert rpc.call(CONTEXT, "test", {"method": "fortytwo"}) == 42

    def test_call_gives_the_last_value_of_a_generator(self, receiver: Receiver) -> None:
        """Of several values that a generator yields, `call` returns the last."""
        assert rpc.call(CONTEXT, "test", {"method": "echo_three_times_yield", "args": {"value": 42}}) == 44

    def test_multicall_of_a_plain_method(self, receiver: Receiver) -> None:
        """A plain return gives exactly one value."""
        assert list(rpc.multicall(CONTEXT, "test", {"method": "echo", "args": {"value": 42}})) == [42]

    def test_multicall_yields_three_nones(self, receiver: Receiver) -> None:
        """None is a value like others."""
        values = rpc.multicall(CONTEXT, "test", {"method": "multicall_three_nones", "args": {"value": 42}})
        assert list(values) == [None, None, None]

    def test_multicall_yields_three_values(self, receiver: Receiver) -> None:
        """The values arrive in their order, and the iterator is empty afterwards."""
        values = rpc.multicall(CONTEXT, "test", {"method": "echo_three_times_yield", "args": {"value": 42}})
        assert list(values) == [42, 43, 44]
        assert list(values) == []

    def test_multicall_raises_after_the_values_before(self, receiver: Receiver) -> None:
        """What the generator yielded before it raised arrives first."""
        values = rpc.multicall(CONTEXT, "test", {"method": "two_then_raise"})
        assert [next(values), next(values)] == [1, 2]
        with pytest.raises(KeyError, match="third"):
            next(values)

    @pytest.mark.parametrize("taken", [0, 2])
    def test_multicall_that_is_dropped_ends_the_generator(self, receiver: Receiver, taken: int) -> None:
        """Whether values were taken or none: nobody has to close anything."""
        values = rpc.multicall(CONTEXT, "test", {"method": "count_for_ever"})
        assert list(itertools.islice(values, taken)) == list(range(taken))
        del values
        assert receiver.generator_closed.wait(EVENT_TIMEOUT)

    def test_context_is_passed(self, receiver: Receiver) -> None:
        """The context arrives as an object with the same values."""
        assert rpc.call(CONTEXT, "test", {"method": "context", "args": {"value": 42}}) == CONTEXT.to_dict()
        assert rpc.call(CONTEXT, "test", {"method": "user"}) == "fake_user"

    def test_cast_succeeds(self, receiver: Receiver) -> None:
        """A cast runs the method."""
        rpc.cast(CONTEXT, "test", {"method": "note", "args": {"value": 42}})
        assert receiver.cast_came.wait(EVENT_TIMEOUT)
        assert receiver.cast_values == [42]

    def test_fanout_cast_succeeds(self, receiver: Receiver) -> None:
        """A fanout cast runs the method, on every consumer with fanout=True."""
        other = Receiver()
        conn = rpc.create_connection()
        conn.create_consumer("test", other, fanout=True)
        conn.consume_in_thread()
        rpc.fanout_cast(CONTEXT, "test", {"method": "note", "args": {"value": 42}})
        assert receiver.cast_came.wait(EVENT_TIMEOUT)
        assert other.cast_came.wait(EVENT_TIMEOUT)
        conn.close()
        assert receiver.cast_values == other.cast_values == [42]

    def test_cast_succeeds_despite_missing_args(self, receiver: Receiver) -> None:
        """A cast, and a fanout cast, need no 'args'."""
        rpc.fanout_cast(CONTEXT, "test", {"method": "note"})
        assert receiver.cast_came.wait(EVENT_TIMEOUT)
        assert receiver.cast_values == ["nothing"]

    def test_nested_calls(self, receiver: Receiver) -> None:
        """A method may call another topic that the same process serves, with its own context."""
        conn = rpc.create_connection()
        conn.create_consumer("nested", Receiver())
        conn.consume_in_thread()
        assert rpc.call(CONTEXT, "test", {"method": "nested", "args": {"topic": "nested"}}) == "fake_user"
        conn.close()

    def test_call_times_out_twice(self, receiver: Receiver) -> None:
        """A call that takes too long raises Timeout at its deadline, the second like the first."""
        for _ in range(2):
            with pytest.raises(rpc.Timeout, match="block"):
                rpc.call(CONTEXT, "test", {"method": "block"}, timeout=1)
        receiver.release.set()
        assert rpc.call(CONTEXT, "test", {"method": "fortytwo"}) == 42

    def test_concurrent_calls_get_their_own_answers(self, receiver: Receiver) -> None:
        """Of three calls that are answered in the order 3, 1, 2 each gets its own."""
        answers: dict[int, Any] = {}

        def call(callid: int) -> None:
            args = {"value": f"value {callid}", "callid": callid}
            answers[callid] = rpc.call(CONTEXT, "test", {"method": "synced_echo", "args": args})

        threads = {callid: threading.Thread(target=call, args=(callid,)) for callid in (1, 2, 3)}
        for thread in threads.values():
            thread.start()
        for _ in threads:
            assert receiver.running.acquire(timeout=EVENT_TIMEOUT)
        for callid in (3, 1, 2):
            assert callid not in answers
            receiver.answer[callid].set()
            threads[callid].join(EVENT_TIMEOUT)
            assert answers[callid] == f"value {callid}"

    def test_exception_of_a_method_is_raised_at_the_caller(self, receiver: Receiver) -> None:
        """A built-in exception is raised as itself, one that may not be rebuilt as RemoteError, with its traceback."""
        with pytest.raises(NotImplementedError, match="42"):
            rpc.call(CONTEXT, "test", {"method": "fail", "args": {"value": "42"}})
        with pytest.raises(rpc.RemoteError) as caught:
            rpc.call(CONTEXT, "test", {"method": "fail_converted", "args": {"value": "42"}})
        assert (caught.value.exc_type, caught.value.value) == ("ApiError", "42")
        assert "fail_converted" in "".join(caught.value.traceback or [])

    def test_message_is_not_changed(self, receiver: Receiver) -> None:
        """The caller's dict, and what is in it, is after a call what it was before."""
        args: dict[str, Any] = {"value": {"nested": [1, 2]}}
        msg = {"method": "echo", "args": args}
        assert rpc.call(CONTEXT, "test", msg) == {"nested": [1, 2]}
        assert msg == {"method": "echo", "args": {"value": {"nested": [1, 2]}}}
        assert msg["args"] is args

    def test_workers_of_a_pool_share_a_cast(self, receiver: Receiver) -> None:
        """One of a pool's members runs it, besides a consumer of the topic itself."""
        workers = [Receiver() for _ in range(2)]
        conn = rpc.create_connection()
        for worker in workers:
            conn.create_worker("test", worker, "pool")
        conn.consume_in_thread()
        for number in range(4):
            rpc.cast(CONTEXT, "test", {"method": "note", "args": {"value": number}})
        rpc.call(CONTEXT, "test", {"method": "fortytwo"})
        conn.close()
        assert sorted(value for worker in workers for value in worker.cast_values) == [0, 1, 2, 3]

    def test_each_pool_gets_a_notification(self, receiver: Receiver) -> None:
        """One of its members, as a dict, with the sender's context."""
        got: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()

        def put(pool: str, message: dict[str, Any]) -> None:
            got.put((pool, message))

        conn = rpc.create_connection()
        for pool in ("one", "one", "two"):
            conn.join_consumer_pool(functools.partial(put, pool), pool, "notifications.info")
        conn.consume_in_thread()
        rpc.notify(CONTEXT, "notifications.info", {"event_type": "created"})
        came = dict(got.get(timeout=EVENT_TIMEOUT) for _ in range(2))
        assert set(came) == {"one", "two"}
        for message in came.values():
            assert (message["event_type"], message["_context_user"]) == ("created", "fake_user")
        conn.close()
        assert got.empty()
