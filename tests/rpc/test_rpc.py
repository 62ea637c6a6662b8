"""msgbus.rpc: the classic functional API, in memory. tests/functional/test_rpc.py has what needs a message system."""

from __future__ import annotations

import logging
import os
import pathlib
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from oslo_config import cfg

import msgbus
from msgbus import rpc
from msgbus.conformance.waiting import until
from msgbus.deadline import current
from msgbus.rpc import binding
from msgbus.rpc.messages import split_topic
from msgbus.rpc.removed import REMOVED
from tests.rpc.checks import RpcChecks
from tests.support import EVENT_TIMEOUT, ROOT, new_conf, new_transport, new_url


@pytest.fixture
def conf() -> Iterator[cfg.ConfigOpts]:
    """A bus of its own in memory, which `rpc` is bound to."""
    conf = new_conf(transport_url=new_url(), rpc_response_timeout=EVENT_TIMEOUT)
    rpc.init(conf)
    yield conf
    rpc.cleanup()


class TestOnFake(RpcChecks):
    pass


class Manager:
    """A service's object."""

    RPC_API_VERSION = "1.3"

    def __init__(self) -> None:
        self.notes: queue.Queue[Any] = queue.Queue()

    def greet(self, context: Any, name: str = "you") -> str:
        return f"Hello, {name}"

    def note(self, context: Any, text: Any) -> None:
        self.notes.put(text)

    def _hidden(self, context: Any) -> str:
        return "secret"


@pytest.fixture
def connection(conf: cfg.ConfigOpts) -> Iterator[rpc.Connection]:
    """A connection that is closed at the end."""
    connection = rpc.create_connection()
    yield connection
    connection.close()


@pytest.fixture
def manager(connection: rpc.Connection) -> Manager:
    """A manager that serves the topic ``svc``."""
    manager = Manager()
    connection.create_consumer("svc", manager)
    connection.create_consumer("svc.h1", manager)
    connection.create_consumer("svc", manager, fanout=True)
    connection.consume_in_thread()
    return manager


# Configuration


def test_init_may_come_before_the_configuration_is_parsed(tmp_path: pathlib.Path) -> None:
    """Options are registered first, the file is read later, and its values hold."""
    path = tmp_path / "service.conf"
    path.write_text("[DEFAULT]\nrpc_backend = msgbus.rpc.impl_fake\nrpc_response_timeout = 7\n")
    conf = cfg.ConfigOpts()
    rpc.init(conf)
    conf(["--config-file", str(path)], default_config_files=[])
    try:
        transport = binding.transport()
        assert (transport.url.transport, transport.conf.rpc_response_timeout) == ("fake", 7)
    finally:
        rpc.cleanup()


def test_without_init_the_global_configuration_is_used() -> None:
    """A program that only says ``cfg.CONF(...)`` needs no `init`."""
    program = (
        "from oslo_config import cfg\n"
        "from msgbus import rpc\n"
        "class Manager:\n"
        "    def greet(self, context): return 'hello'\n"
        "cfg.CONF([], default_config_files=[])\n"
        "conn = None\n"
        "from msgbus import configuration\n"
        "configuration.register(cfg.CONF)\n"
        "cfg.CONF.set_override('rpc_backend', 'fake')\n"
        "conn = rpc.create_connection()\n"
        "conn.create_consumer('svc', Manager())\n"
        "conn.consume_in_thread()\n"
        "print(rpc.call({}, 'svc', {'method': 'greet'}))\n"
        "conn.close()\n"
        "rpc.cleanup()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("hello\n", "")


def test_another_configuration_closes_what_was_open(conf: cfg.ConfigOpts) -> None:
    """After `init` with another configuration, nothing of the first is left."""
    first = binding.transport()
    rpc.init(conf)
    assert binding.transport() is first
    rpc.init(new_conf(transport_url=new_url()))
    assert first.closed
    assert binding.transport() is not first


def test_invalid_configuration_objects_are_refused(conf: cfg.ConfigOpts) -> None:
    """The error says what is wanted, and what was open stays so."""
    transport, nothing = binding.transport(), None
    with pytest.raises(TypeError, match="ConfigOpts, not NoneType"):
        rpc.init(nothing)  # type: ignore[arg-type]  # that is the mistake
    assert binding.transport() is transport
    assert not transport.closed


def test_default_exchange_can_be_set() -> None:
    """A project's own default for control_exchange holds, whether it is set before or after `init`."""
    conf = new_conf(transport_url=new_url())
    try:
        rpc.set_defaults(control_exchange="nova")
        rpc.init(conf)
        assert conf.control_exchange == "nova"
        rpc.set_defaults(control_exchange="cinder")
        assert conf.control_exchange == "cinder"
        conf.set_override("control_exchange", "mine")
        assert conf.control_exchange == "mine"
    finally:
        binding._bound.exchange = None
        rpc.cleanup()


def test_everything_may_be_used_again_after_cleanup(manager: Manager) -> None:
    """`cleanup` closes, and the next use opens anew."""
    transport = binding.transport()
    rpc.cleanup()
    rpc.cleanup()
    assert transport.closed
    connection = rpc.create_connection()
    connection.create_consumer("svc", manager)
    connection.consume_in_thread()
    assert rpc.call({}, "svc", {"method": "greet"}) == "Hello, you"
    connection.close()


def test_threads_share_one_transport(conf: cfg.ConfigOpts) -> None:
    """However many threads ask at the same time, one transport is opened."""
    found: list[msgbus.Transport] = []
    start = threading.Barrier(8)

    def ask() -> None:
        start.wait()
        found.append(binding.transport())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(map(id, found))) == 1


def test_method_may_use_rpc_while_another_configuration_is_taken(
    conf: cfg.ConfigOpts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing the old one takes time; the new one can be used meanwhile."""
    closing, go_on = threading.Event(), threading.Event()
    cleanup = msgbus.Transport.cleanup

    def close_slowly(transport: msgbus.Transport) -> None:
        closing.set()
        assert go_on.wait(EVENT_TIMEOUT)
        cleanup(transport)

    binding.transport()
    monkeypatch.setattr(msgbus.Transport, "cleanup", close_slowly)
    other = new_conf(transport_url=new_url())
    taking = threading.Thread(target=rpc.init, args=(other,))
    taking.start()
    assert closing.wait(EVENT_TIMEOUT)
    found: queue.Queue[msgbus.Transport] = queue.Queue()
    threading.Thread(target=lambda: found.put(binding.transport())).start()
    assert found.get(timeout=EVENT_TIMEOUT).conf is other
    go_on.set()
    taking.join(EVENT_TIMEOUT)


def test_exception_of_an_allowed_module_is_rebuilt(connection: rpc.Connection, conf: cfg.ConfigOpts) -> None:
    """The option allowed_rpc_exception_modules says which."""
    conf.set_override("allowed_rpc_exception_modules", ["tests.rpc.checks"])
    rpc.cleanup()
    connection = rpc.create_connection()
    from tests.rpc.checks import ApiError, Receiver

    connection.create_consumer("test", Receiver())
    connection.consume_in_thread()
    with pytest.raises(ApiError) as caught:
        rpc.call({}, "test", {"method": "fail_converted", "args": {"value": "no"}})
    assert (str(caught.value), caught.value.code) == ("no", "500")
    connection.close()


# Messages and topics


@pytest.mark.parametrize(
    ("msg", "text"),
    [
        ("greet", "a message is a dict"),
        ({}, "names its method"),
        ({"method": None}, "names its method"),
        ({"method": "greet", "arg": {}}, "did you mean 'args'"),
        ({"method": "greet", "zzz": 1}, "there are 'method', 'args'"),
        ({"method": "greet", "args": [1]}, "arguments by name"),
        ({"method": "greet", "args": {1: 2}}, "arguments by name"),
        ({"method": "greet", "args": {"name": object()}}, "'name'"),
        ({"method": "greet", "namespace": 5}, "'namespace' is a string"),
        ({"method": "greet", "version": 1.0}, "'version' is a string"),
        ({"method": "greet", "version": "one"}, "'one' is invalid"),
    ],
)
def test_invalid_message_is_refused_by_the_sender(manager: Manager, msg: Any, text: str) -> None:
    """The error says what is wrong with it, from every function."""
    for verb in (rpc.call, rpc.cast, rpc.fanout_cast, rpc.multicall):
        with pytest.raises(msgbus.SerializationError, match=text):
            verb({}, "svc", msg)
    proxy = rpc.RpcProxy("svc", "1.0")
    if not isinstance(msg, dict) or "version" not in msg:  # of which a proxy sets its own
        with pytest.raises(msgbus.SerializationError, match=text):
            proxy.call({}, msg)


@pytest.mark.parametrize("timeout", ["5", float("nan")])
def test_invalid_timeout_is_refused(manager: Manager, timeout: Any) -> None:
    """It is an error at the caller, from both functions that take one."""
    for verb in (rpc.call, rpc.multicall):
        with pytest.raises(ValueError, match="number of seconds"):
            verb({}, "svc", {"method": "greet"}, timeout)
    with pytest.raises(ValueError, match="number of seconds"):
        rpc.create_connection().close(timeout)


def test_no_time_is_a_timeout_and_nothing_is_sent(manager: Manager) -> None:
    """A time that is over already, as a caller may have computed it, is a timeout at once."""
    for verb in (rpc.call, rpc.multicall):
        with pytest.raises(rpc.Timeout, match="nothing was sent"):
            verb({}, "svc", {"method": "note", "args": {"text": "sent"}}, -1)
    rpc.call({}, "svc", {"method": "greet"})
    assert manager.notes.empty()


@pytest.mark.parametrize("context", [7, "text", [1], {"a": object()}])
def test_invalid_context_is_refused_by_the_sender(manager: Manager, context: Any) -> None:
    """A context has to be a dict or to have a to_dict(), and to hold plain data."""
    with pytest.raises(msgbus.SerializationError):
        rpc.call(context, "svc", {"method": "greet"})
    with pytest.raises(msgbus.SerializationError):
        rpc.notify(context, "notifications.info", {"a": 1})


@pytest.mark.parametrize("context", [None, {}, {"user": "ada"}, rpc.RpcContext(user="ada")])
def test_context_may_be_of_any_kind(manager: Manager, context: Any) -> None:
    """None, a dict, and an object with to_dict()."""
    assert rpc.call(context, "svc", {"method": "greet", "args": {"name": "Ada"}}) == "Hello, Ada"


@pytest.mark.parametrize("topic", ["", "svc.", ".h1", None, 7])
def test_invalid_topic_is_refused(manager: Manager, topic: Any) -> None:
    """By every function that takes one."""
    with pytest.raises(msgbus.InvalidTarget):
        rpc.call({}, topic, {"method": "greet"})
    with pytest.raises(msgbus.InvalidTarget):
        rpc.create_connection().create_consumer(topic, manager)
    if not isinstance(topic, str) or not topic:
        with pytest.raises(msgbus.InvalidTarget):
            rpc.notify({}, topic, {"n": 1})
        with pytest.raises(msgbus.InvalidTarget):
            rpc.create_connection().join_consumer_pool(print, topic, "notifications.info")


def test_host_may_have_dots() -> None:
    """The first dot ends the topic: hosts have domain names."""
    assert split_topic("compute.node1.example.org") == ("compute", "node1.example.org")
    assert split_topic("compute") == ("compute", None)


def test_queue_get_for() -> None:
    """The topic of one host; without a host, the topic."""
    assert rpc.queue_get_for({}, "compute", "node1") == "compute.node1"
    assert rpc.queue_get_for({}, "compute", None) == "compute"


# Proxies


class OldDispatch:
    """A proxy with a dispatch of the first kind."""

    def dispatch(self, ctxt: Any, version: str, method: str, **kwargs: Any) -> Any:
        return [type(ctxt).__name__, version, method, kwargs]


class NewDispatch:
    """A proxy with a dispatch that takes the namespace."""

    def dispatch(self, ctxt: Any, version: str, method: str, namespace: str | None, **kwargs: Any) -> Any:
        return [type(ctxt).__name__, version, method, namespace, kwargs]


def test_proxy_with_a_dispatch_of_its_own(connection: rpc.Connection) -> None:
    """It is called, with a namespace if it takes one."""
    connection.create_consumer("old", OldDispatch())
    connection.create_consumer("new", NewDispatch())
    connection.consume_in_thread()
    msg = {"method": "m", "args": {"a": 1}, "version": "1.7", "namespace": "n"}
    with pytest.raises(rpc.UnsupportedRpcVersion, match="namespace n"):
        rpc.call({}, "old", msg)
    assert rpc.call({}, "old", {**msg, "namespace": None}) == ["CommonRpcContext", "1.7", "m", {"a": 1}]
    assert rpc.call({}, "new", msg) == ["CommonRpcContext", "1.7", "m", "n", {"a": 1}]
    assert rpc.call({}, "new", {"method": "m"}) == ["CommonRpcContext", "1.0", "m", None, {}]


def test_private_method_is_not_run(manager: Manager) -> None:
    """What begins with an underscore is nobody else's."""
    with pytest.raises(msgbus.AccessDenied):
        rpc.call({}, "svc", {"method": "_hidden"})


class Vice:
    """A manager one of whose methods for callers has the name of a proxy's."""

    def dispatch(self, context: Any, order: str) -> str:
        return order


def test_invalid_proxy_is_refused_at_once(connection: rpc.Connection) -> None:
    """What could not run a single message is no consumer, and those that were created before are not harmed."""
    connection.create_consumer("svc", Manager())
    for proxy, text in ((None, "not None"), (Vice(), "RpcDispatcher")):
        with pytest.raises(TypeError, match=text):
            connection.create_consumer("bad", proxy)
    bad: Any = None
    with pytest.raises(TypeError, match="callback"):
        connection.join_consumer_pool(bad, "pool", "svc")
    connection.create_consumer("vice", rpc.RpcDispatcher([Vice()]))
    connection.consume_in_thread()
    assert rpc.call({}, "svc", {"method": "greet"}) == "Hello, you"
    assert rpc.call({}, "vice", {"method": "dispatch", "args": {"order": "66"}}) == "66"


def test_one_proxy_can_serve_two_topics(connection: rpc.Connection, manager: Manager, conf: cfg.ConfigOpts) -> None:
    """Each topic's server has its own name."""
    connection.create_consumer("other", manager)
    connection.create_consumer("other.h2", manager)
    assert rpc.call({}, "other.h2", {"method": "greet"}) == "Hello, you"
    with pytest.raises(rpc.RPCException):
        rpc.call({}, "other.h1", {"method": "greet"})
    with pytest.raises(rpc.RPCException):
        rpc.call({}, "svc.h2", {"method": "greet"})


def test_a_method_can_close_its_own_connection(conf: cfg.ConfigOpts) -> None:
    """The call is answered, and `close` does not wait for that method."""
    own = rpc.create_connection()

    class Closing:
        def close(self, context: Any) -> str:
            own.close()
            return "closed"

    own.create_consumer("svc", Closing())
    own.consume_in_thread()
    assert rpc.call({}, "svc", {"method": "close"}) == "closed"


def test_cleanup_warns_of_consumers_that_it_disconnects(manager: Manager, caplog: pytest.LogCaptureFixture) -> None:
    """A service that goes dead since somebody called `cleanup` has it in its log; its connection says so too."""
    connection = rpc.create_connection()
    rpc.cleanup()
    assert "disconnects consumers" in caplog.text
    with pytest.raises(rpc.InvalidRPCConnectionReuse):
        connection.create_consumer("svc", manager)


def test_connection_cannot_be_used_in_a_forked_child(connection: rpc.Connection, manager: Manager) -> None:
    """A child can neither use nor disturb its parent's connection; one of its own works."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            connection.close()
            try:
                connection.create_consumer("other", manager)
            except rpc.InvalidRPCConnectionReuse:
                binding.transport()
                code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert rpc.call({}, "svc", {"method": "greet"}) == "Hello, you"


def test_cast_of_a_method_whose_caller_has_given_up_is_sent(manager: Manager, connection: rpc.Connection) -> None:
    """A cast or notification that a method sends is sent even if the method's caller has given up."""
    release, outcome = threading.Event(), queue.Queue[Any]()

    class Slow:
        def work(self, context: Any) -> None:
            release.wait(EVENT_TIMEOUT)
            own_deadline = current.get()  # A moment later than the caller's, who did not know when this began.
            assert own_deadline is not None
            while time.monotonic() < own_deadline:
                time.sleep(0.01)
            try:
                rpc.cast(context, "svc", {"method": "note", "args": {"text": "done"}})
                rpc.notify(context, "notifications.info", {"event": "done"})
                with pytest.raises(rpc.Timeout, match="nothing was sent"):
                    rpc.call(context, "svc", {"method": "greet"})
                outcome.put("sent")
            except BaseException as exc:
                outcome.put(exc)

    connection.create_consumer("slow", Slow())
    with pytest.raises(rpc.Timeout):
        rpc.call({}, "slow", {"method": "work"}, timeout=0.5)
    release.set()
    assert outcome.get(timeout=EVENT_TIMEOUT) == "sent"
    assert manager.notes.get(timeout=EVENT_TIMEOUT) == "done"


def test_arguments_that_do_not_fit_are_refused(manager: Manager) -> None:
    """The caller gets an error that says so."""
    with pytest.raises(msgbus.InvalidArguments, match="nmae"):
        rpc.call({}, "svc", {"method": "greet", "args": {"nmae": "Ada"}})


def test_consumer_may_be_created_while_consuming(manager: Manager, connection: rpc.Connection) -> None:
    """It is served from then on."""
    connection.create_consumer("later", manager)
    assert rpc.call({}, "later", {"method": "greet"}) == "Hello, you"
    rpc.fanout_cast({}, "svc", {"method": "note", "args": {"text": "once"}})
    assert manager.notes.get(timeout=EVENT_TIMEOUT) == "once"
    connection.close()
    assert manager.notes.empty()


def test_consumer_that_is_created_while_others_are_started_is_served(
    connection: rpc.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another thread, while the first consumers wait for the message system."""
    starting, go_on = threading.Event(), threading.Event()
    start = msgbus.RPCServer.start

    def start_slowly(server: msgbus.RPCServer, timeout: float | None = None) -> None:
        starting.set()
        assert go_on.wait(EVENT_TIMEOUT)
        start(server, timeout)

    monkeypatch.setattr(msgbus.RPCServer, "start", start_slowly)
    connection.create_consumer("svc", Manager())
    consuming = threading.Thread(target=connection.consume_in_thread)
    consuming.start()
    assert starting.wait(EVENT_TIMEOUT)
    connection.create_consumer("late", Manager())
    go_on.set()
    consuming.join(EVENT_TIMEOUT)
    for topic in ("svc", "late"):
        assert rpc.call({}, topic, {"method": "greet"}) == "Hello, you"


def test_the_same_consumer_twice_runs_each_message_once(connection: rpc.Connection) -> None:
    """A fanout to a proxy that was registered twice for it is run once."""
    manager = Manager()
    for _ in range(2):
        connection.create_consumer("svc", manager, fanout=True)
    connection.create_consumer("svc.h1", manager)
    connection.consume_in_thread()
    rpc.fanout_cast({}, "svc", {"method": "note", "args": {"text": "once"}})
    assert manager.notes.get(timeout=EVENT_TIMEOUT) == "once"
    rpc.call({}, "svc.h1", {"method": "greet"})
    assert manager.notes.empty()


def test_closed_connection_raises(connection: rpc.Connection) -> None:
    """It says so, and may be closed again."""
    connection.close()
    connection.close()
    for use in (
        connection.consume_in_thread,
        lambda: connection.create_consumer("svc", Manager()),
        lambda: connection.create_worker("svc", Manager(), "pool"),
        lambda: connection.join_consumer_pool(print, "pool", "svc"),
    ):
        with pytest.raises(rpc.InvalidRPCConnectionReuse, match="create another"):
            use()


def test_close_lets_running_methods_finish(conf: cfg.ConfigOpts) -> None:
    """A call that is being run when its connection is closed is answered."""
    began, release = threading.Event(), threading.Event()

    class Slow:
        def work(self, context: Any) -> str:
            began.set()
            release.wait(EVENT_TIMEOUT)
            return "done"

    connection = rpc.create_connection()
    connection.create_consumer("slow", Slow())
    connection.consume_in_thread()
    answers: list[Any] = []
    caller = threading.Thread(target=lambda: answers.append(rpc.call({}, "slow", {"method": "work"})))
    caller.start()
    assert began.wait(EVENT_TIMEOUT)
    closer = threading.Thread(target=connection.close)
    closer.start()
    release.set()
    for thread in (caller, closer):
        thread.join(EVENT_TIMEOUT)
    assert answers == ["done"]


# Versions and namespaces


def test_versions_of_a_dispatcher() -> None:
    """Same major, and no lower minor; none means 1.0."""
    dispatcher = rpc.RpcDispatcher([Manager()])
    for version in (None, "1.0", "1.3"):
        assert dispatcher.dispatch({}, version, "greet", None, name="Ada") == "Hello, Ada"
    assert dispatcher.dispatch({}, "1.1", "greet", name="Ada") == "Hello, Ada"
    for version in ("1.4", "2.0", "0.3"):
        with pytest.raises(rpc.UnsupportedRpcVersion):
            dispatcher.dispatch({}, version, "greet", None)
    with pytest.raises(AttributeError, match="missing"):
        dispatcher.dispatch({}, "1.0", "missing", None)


def test_namespaces_of_a_dispatcher() -> None:
    """A callback answers to its namespace only."""

    class Base(Manager):
        RPC_API_NAMESPACE = "base"

        def greet(self, context: Any, name: str = "you") -> str:
            return "base"

    dispatcher = rpc.RpcDispatcher([Manager(), Base()])
    assert dispatcher.dispatch({}, "1.0", "greet", "base") == "base"
    assert dispatcher.dispatch({}, "1.0", "greet", None) == "Hello, you"
    with pytest.raises(rpc.UnsupportedRpcVersion):
        dispatcher.dispatch({}, "1.0", "greet", "other")


class Upper:
    """A serializer of the old kind: entities only. It sees the context."""

    def serialize_entity(self, context: Any, entity: Any) -> Any:
        assert context is not None
        return entity.upper()

    def deserialize_entity(self, context: Any, entity: Any) -> Any:
        assert context is not None
        return f"<{entity}>"


def test_serializer_without_context_methods_is_used(connection: rpc.Connection) -> None:
    """It is applied to arguments and results, to each value of a generator too, on both sides."""

    class Echo:
        def echo(self, context: Any, value: str) -> str:
            return value

        def twice(self, context: Any, value: str) -> Iterator[str]:
            yield value
            yield value

    connection.create_consumer("svc", rpc.RpcDispatcher([Echo()], serializer=Upper()))
    connection.consume_in_thread()
    proxy = rpc.RpcProxy("svc", "1.0", serializer=Upper())
    assert proxy.call({"u": 1}, proxy.make_msg("echo", value="a")) == "<<A>>"
    assert list(proxy.multicall({"u": 1}, proxy.make_msg("twice", value="a"))) == ["<<A>>", "<<A>>"]


def test_proxy_sends_in_a_version(manager: Manager) -> None:
    """Each verb: the default version, another one, one above the cap, another topic."""
    proxy = rpc.RpcProxy("svc", "1.1", version_cap="1.3")
    msg = proxy.make_msg("note", text="x")
    assert proxy.call({}, proxy.make_msg("greet", name="Ada"), version="1.2", timeout=5) == "Hello, Ada"
    assert list(proxy.multicall({}, proxy.make_msg("greet"), topic="svc.h1")) == ["Hello, you"]
    proxy.cast({}, msg, version="1.2")
    proxy.fanout_cast({}, msg)
    assert [manager.notes.get(timeout=EVENT_TIMEOUT) for _ in range(2)] == ["x", "x"]
    assert msg == {"method": "note", "namespace": None, "args": {"text": "x"}}
    assert (proxy.can_send_version("1.3"), proxy.can_send_version("1.4")) == (True, False)
    params = {"hostname": "localhost"}
    for send in (
        lambda: proxy.call({}, msg, version="1.4"),
        lambda: proxy.multicall({}, msg, version="1.4"),
        lambda: proxy.cast({}, msg, version="2.0"),
        lambda: proxy.fanout_cast({}, msg, version="1.4"),
        lambda: proxy.cast_to_server({}, params, msg, version="1.4"),
        lambda: proxy.fanout_cast_to_server({}, params, msg, version="1.4"),
    ):
        with pytest.raises(rpc.RpcVersionCapError, match=r"1\.3"):
            send()


def test_proxy_reaches_other_topics_and_all_servers(manager: Manager, connection: rpc.Connection) -> None:
    """A topic that is given wins over the proxy's own; a fanout reaches every server, a cast one."""
    other = Manager()
    connection.create_consumer("other", other)
    connection.create_consumer("svc", other, fanout=True)
    proxy = rpc.RpcProxy("nobody", "1.0")
    assert proxy.call({}, proxy.make_msg("greet"), topic="other") == "Hello, you"
    assert list(proxy.multicall({}, proxy.make_msg("greet"), topic="other")) == ["Hello, you"]
    proxy.cast({}, proxy.make_msg("note", text="one"), topic="other")
    assert other.notes.get(timeout=EVENT_TIMEOUT) == "one"
    proxy.fanout_cast({}, proxy.make_msg("note", text="all"), topic="svc")
    assert [noting.notes.get(timeout=EVENT_TIMEOUT) for noting in (manager, other)] == ["all", "all"]


def test_proxy_makes_messages() -> None:
    """With the namespace of its class, or another; an argument may be called as the function's own."""

    class Base(rpc.RpcProxy):
        RPC_API_NAMESPACE = "base"

    proxy = Base("svc", "1.0")
    assert proxy.make_msg("m", a=1) == {"method": "m", "namespace": "base", "args": {"a": 1}}
    assert proxy.make_namespaced_msg("m", "n", namespace=2) == {
        "method": "m",
        "namespace": "n",
        "args": {"namespace": 2},
    }
    with pytest.raises(ValueError, match="one"):
        rpc.RpcProxy("svc", "one")


def test_server_with_a_lower_version_refuses(manager: Manager) -> None:
    """A version that the server does not have is an error at the caller."""
    with pytest.raises(rpc.UnsupportedRpcVersion, match=r"1\.9"):
        rpc.call({}, "svc", {"method": "greet", "version": "1.9"})


# Service


def test_service_serves_in_all_three_ways(conf: cfg.ConfigOpts) -> None:
    """As any one, as the one on its host, and as one of all; its manager's hook comes before the first request."""

    class Hooked(Manager):
        def initialize_service_hook(self, service: rpc.Service) -> None:
            self.note(None, service.host)

    manager = Hooked()
    service = rpc.Service("h9", "svc", manager)
    service.start()
    assert manager.notes.get_nowait() == "h9"
    assert rpc.call({}, "svc", {"method": "greet"}) == "Hello, you"
    assert rpc.call({}, "svc.h9", {"method": "greet"}) == "Hello, you"
    rpc.fanout_cast({}, "svc", {"method": "note", "args": {"text": "all"}})
    assert manager.notes.get(timeout=EVENT_TIMEOUT) == "all"
    service.start()
    assert manager.notes.empty()
    service.stop()
    service.stop()
    service.start()
    assert manager.notes.get_nowait() == "h9"
    assert rpc.call({}, "svc.h9", {"method": "greet"}) == "Hello, you"
    service.stop()


@pytest.mark.parametrize("topic", ["svc", ""])
def test_service_that_could_not_be_started_can_be_started_again(conf: cfg.ConfigOpts, topic: str) -> None:
    """If its hook raises, or its topic is invalid, nothing is served, and `start` can be called again."""

    class Hooked(Manager):
        def initialize_service_hook(self, service: rpc.Service) -> None:
            if self.notes.empty():
                raise LookupError("no database")

    manager = Hooked()
    service = rpc.Service("h1", topic, manager)
    for _ in range(2):
        with pytest.raises((LookupError, msgbus.InvalidTarget)):
            service.start()
    assert service.conn is None
    manager.note(None, "the database is there")
    service.topic = "svc"
    service.start()
    assert rpc.call({}, "svc.h1", {"method": "greet"}) == "Hello, you"
    service.stop()


def test_service_without_manager_serves_its_own_methods(conf: cfg.ConfigOpts) -> None:
    """A subclass may be its own manager."""

    class Own(rpc.Service):
        def greet(self, context: Any) -> str:
            return f"from {self.host}"

    service = Own("h1", "own", serializer=Upper())
    service.stop()
    service.start()
    assert rpc.call({}, "own", {"method": "greet"}) == "FROM H1"
    service.stop()


def test_services_of_both_kinds_call_each_other(manager: Manager, conf: cfg.ConfigOpts) -> None:
    """A client and a server of the other API, on the same message system."""
    transport = new_transport(conf.transport_url)
    client = msgbus.get_rpc_client(transport, msgbus.Target(topic="svc", version="1.2"), timeout=EVENT_TIMEOUT)
    assert client.call({"user": "ada"}, "greet", name="Ada") == "Hello, Ada"
    assert [answer["server"] for answer in client.ping()] == ["h1"]
    server = msgbus.get_rpc_server(transport, msgbus.Target(topic="new", server="n1"), [Manager()])
    server.start()
    assert rpc.call({}, "new.n1", {"method": "greet"}) == "Hello, you"
    server.stop()
    server.wait()
    transport.cleanup()


# Other message systems


def test_cast_to_another_message_system(manager: Manager, conf: cfg.ConfigOpts) -> None:
    """`cast_to_server` reaches the servers there, not those here, and its connection is kept."""
    other = new_conf(transport_url=new_url())
    transport = msgbus.get_rpc_transport(other)
    there = Manager()
    server = msgbus.get_rpc_server(transport, msgbus.Target(topic="svc", server="h1"), [there])
    server.start()
    params = {"hostname": transport.url.hosts[0].hostname, "virtual_host": ""}
    rpc.cast_to_server({}, params, "svc", {"method": "note", "args": {"text": 1}})
    rpc.fanout_cast_to_server({}, params, "svc", {"method": "note", "args": {"text": 2}})
    assert {there.notes.get(timeout=EVENT_TIMEOUT) for _ in range(2)} == {1, 2}
    proxy = rpc.RpcProxy("svc", "1.0")
    proxy.cast_to_server({}, params, proxy.make_msg("note", text=3))
    assert there.notes.get(timeout=EVENT_TIMEOUT) == 3
    second = Manager()
    another = msgbus.get_rpc_server(transport, msgbus.Target(topic="svc", server="h2"), [second])
    another.start()
    proxy.fanout_cast_to_server({}, params, proxy.make_msg("note", text=4))
    assert [noting.notes.get(timeout=EVENT_TIMEOUT) for noting in (there, second)] == [4, 4]
    another.stop()
    another.wait()
    assert manager.notes.empty()
    assert len(binding._bound.transports) == 2
    server.stop()
    server.wait()
    transport.cleanup()


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({}, "hostname is missing"),
        ({"hostname": "h", "user": "u"}, "unknown: user"),
        (None, "is a dict"),
        ([], "is a dict"),
        ({"hostname": 5}, "hostname is a string"),
        ({"hostname": "h", "port": "abc"}, "port is invalid"),
        ({"hostname": "h", "password": 5}, "password is a string"),
        ({"hostname": "u:pa55@h"}, "not a plain host name"),
        ({"hostname": "rabbit://u:pa55@h/"}, "not a plain host name"),
        ({"hostname": "h", "passwd": "pa55"}, "unknown: passwd"),
        ({"hostname": "h", "port": "pa55"}, "port is invalid"),
        ({"hostname": "h", "port": "9" * 5000}, "port is invalid"),
    ],
)
def test_invalid_server_params_are_refused(
    conf: cfg.ConfigOpts, params: Any, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The error says what is wrong, without what may be a password in a wrong place."""
    with caplog.at_level(logging.DEBUG), pytest.raises(msgbus.ConfigurationError, match=text) as caught:
        rpc.cast_to_server({}, params, "svc", {"method": "greet"})
    assert "pa55" not in str(caught.value) + caplog.text


# Notifications and pools


def test_notification_waits_for_its_first_reader(connection: rpc.Connection) -> None:
    """What is sent before anybody has ever listened is kept for the pool that is called as the topic."""
    rpc.notify({"user": "ada"}, "notifications.info", {"event_type": "created", "payload": {"n": 1}})
    read: queue.Queue[dict[str, Any]] = queue.Queue()
    connection.join_consumer_pool(read.put, "notifications.info", "notifications.info")
    connection.consume_in_thread()
    got = read.get(timeout=EVENT_TIMEOUT)
    first = got.pop("_unique_id")
    assert got == {"event_type": "created", "payload": {"n": 1}, "_context_user": "ada"}
    rpc.notify({}, "notifications.info", {**got, "_unique_id": first})
    assert read.get(timeout=EVENT_TIMEOUT)["_unique_id"] == first


def test_each_pool_gets_a_notification_once(connection: rpc.Connection) -> None:
    """One member of each pool gets it; a callback that raises does not stop the pool."""
    got: queue.Queue[tuple[str, Any]] = queue.Queue()

    def reader(name: str) -> Any:
        def read(message: dict[str, Any]) -> None:
            got.put((name, message["n"]))
            if message["n"] == 0:
                raise SystemExit("poison")

        return read

    for pool in ("one", "one", "two"):
        connection.join_consumer_pool(reader(pool), pool, "notifications.info")
    connection.consume_in_thread()
    for n in range(3):
        rpc.notify(None, "notifications.info", {"n": n})
    expected = [(pool, n) for pool in ("one", "two") for n in range(3)]
    assert sorted(got.get(timeout=EVENT_TIMEOUT) for _ in range(6)) == expected
    connection.close()
    assert got.empty()


def test_pool_calls_again_after_an_exception(connection: rpc.Connection) -> None:
    """With ack_on_error=False, a message whose callback raised comes again."""
    seen: queue.Queue[str] = queue.Queue()
    refuse = [ValueError("not yet")]

    def read(message: dict[str, Any]) -> None:
        seen.put(message["_unique_id"])
        if refuse:
            raise refuse.pop()

    connection.join_consumer_pool(read, "pool", "notifications.info", ack_on_error=False)
    connection.consume_in_thread()
    rpc.notify(None, "notifications.info", {"n": 1})
    assert seen.get(timeout=EVENT_TIMEOUT) == seen.get(timeout=EVENT_TIMEOUT)


def test_messages_that_a_pool_calls_again_for_keep_no_other_one_away(connection: rpc.Connection) -> None:
    """Also as many as a member may hold."""
    welcome: queue.Queue[int] = queue.Queue()

    def read(message: dict[str, Any]) -> None:
        if message["n"] < 64:
            raise ValueError("unwelcome")
        welcome.put(message["n"])

    connection.join_consumer_pool(read, "pool", "notifications.info", ack_on_error=False)
    connection.consume_in_thread()
    for n in range(65):
        rpc.notify({}, "notifications.info", {"n": n})
    assert welcome.get(timeout=EVENT_TIMEOUT) == 64


def test_pool_gives_back_what_it_has_not_begun(connection: rpc.Connection, conf: cfg.ConfigOpts) -> None:
    """At the end, running callbacks finish, and other messages go to another member; nothing runs twice."""
    conf.set_override("executor_thread_pool_size", 1)
    began, release = threading.Event(), threading.Event()
    done: queue.Queue[int] = queue.Queue()

    def slow(message: dict[str, Any]) -> None:
        began.set()
        assert release.wait(EVENT_TIMEOUT)
        done.put(message["n"])

    first = rpc.create_connection()
    first.join_consumer_pool(slow, "pool", "notifications.info")
    first.consume_in_thread()
    for n in range(5):
        rpc.notify({}, "notifications.info", {"n": n})
    assert began.wait(EVENT_TIMEOUT)
    closing = threading.Thread(target=first.close)
    closing.start()
    connection.join_consumer_pool(lambda message: done.put(message["n"]), "pool", "notifications.info")
    connection.consume_in_thread()
    assert sorted(done.get(timeout=EVENT_TIMEOUT) for _ in range(4)) == [1, 2, 3, 4]
    release.set()
    closing.join(EVENT_TIMEOUT)
    assert done.get(timeout=EVENT_TIMEOUT) == 0
    connection.close()
    assert done.empty()


def test_pool_drops_unreadable_messages(connection: rpc.Connection, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and the next message is read."""
    got: queue.Queue[Any] = queue.Queue()
    connection.join_consumer_pool(got.put, "pool", "notifications.info")
    connection.consume_in_thread()
    transport = binding.transport()
    address = transport.address(msgbus.Target(topic="notifications.info"))
    from msgbus.drivers.base import Message

    transport.driver.send(address, Message(b"\xff", "text/plain", "1"), mandatory=False).result(EVENT_TIMEOUT)
    rpc.notify(None, "notifications.info", {"n": 1})
    assert got.get(timeout=EVENT_TIMEOUT)["n"] == 1
    until(lambda: "was dropped" in caplog.text, "the other thread of the pool says so")


def test_workers_of_a_pool_share_its_messages(manager: Manager, connection: rpc.Connection) -> None:
    """`create_worker`: each pool gets a message once, besides the topic's own consumer."""
    workers = [Manager() for _ in range(2)]
    for worker in workers:
        connection.create_worker("svc", worker, "pool")
    for n in range(4):
        rpc.cast({}, "svc", {"method": "note", "args": {"text": n}})
    assert sorted(manager.notes.get(timeout=EVENT_TIMEOUT) for _ in range(4)) == [0, 1, 2, 3]
    connection.close()
    assert sorted(note for worker in workers for note in worker.notes.queue) == [0, 1, 2, 3]


def test_invalid_notification_is_refused(conf: cfg.ConfigOpts) -> None:
    """A notification is a dict of plain data; the error names what is not."""
    bad: Any = "text"
    with pytest.raises(msgbus.SerializationError, match="is a dict"):
        rpc.notify({}, "notifications.info", bad)
    with pytest.raises(msgbus.SerializationError, match="'payload'"):
        rpc.notify({}, "notifications.info", {"payload": object()})


# rpc.common


def test_context_object() -> None:
    """Values are attributes; copies share nothing; `elevated` makes an administrator of a copy."""
    context = rpc.CommonRpcContext(user="ada", roles=["member"])
    assert (context.user, context.values["user"]) == ("ada", "ada")
    with pytest.raises(AttributeError, match="tenant"):
        _ = context.tenant
    elevated = context.elevated(read_deleted="yes")
    assert elevated.to_dict() == {
        "user": "ada",
        "roles": ["member", "admin"],
        "is_admin": True,
        "read_deleted": "yes",
    }
    assert elevated.elevated().roles == ["member", "admin"]
    assert context.to_dict() == {"user": "ada", "roles": ["member"]}
    assert rpc.RpcContext.from_dict(context.to_dict()).to_dict() == context.to_dict()
    assert "ada" not in repr(context)
    assert rpc.CommonRpcContext(self=1).to_dict() == {"self": 1}


def test_context_can_be_copied_and_pickled() -> None:
    """As other plain objects."""
    import copy
    import pickle

    context = rpc.CommonRpcContext(user="ada")
    assert copy.deepcopy(context).user == "ada"
    assert pickle.loads(pickle.dumps(context)).user == "ada"  # noqa: S301 - made above


def test_expected_exceptions_are_not_logged(connection: rpc.Connection, caplog: pytest.LogCaptureFixture) -> None:
    """What `client_exceptions` names is an answer; another exception is an error in the log."""

    class Picky:
        @rpc.client_exceptions(KeyError)
        def look(self, context: Any, name: str) -> None:
            raise KeyError(name) if name == "expected" else ValueError(name)

        def ask(self, context: Any) -> None:
            rpc.catch_client_exception([LookupError], {}.__getitem__, "asked")

    connection.create_consumer("svc", Picky())
    connection.consume_in_thread()
    with caplog.at_level(logging.ERROR):
        with pytest.raises(KeyError):
            rpc.call({}, "svc", {"method": "look", "args": {"name": "expected"}})
        with pytest.raises(KeyError):
            rpc.call({}, "svc", {"method": "ask"})
        assert caplog.text == ""
        with pytest.raises(ValueError, match="other"):
            rpc.call({}, "svc", {"method": "look", "args": {"name": "other"}})
        assert "ValueError" in caplog.text


def test_old_modules_have_their_old_names() -> None:
    """Each name that services import or catch exists, and the exceptions are subclasses of msgbus's."""
    from msgbus.rpc import common, dispatcher, proxy, service

    for name in common.__all__:
        assert getattr(rpc, name) is getattr(common, name), name
    assert (dispatcher.RpcDispatcher, proxy.RpcProxy, service.Service) == (rpc.RpcDispatcher, rpc.RpcProxy, rpc.Service)
    exceptions = {name for name, value in vars(common).items() if isinstance(value, type) and name in common.__all__}
    for name in exceptions - {"ClientException", "CommonRpcContext", "Connection", "RpcContext"}:
        assert issubclass(getattr(common, name), msgbus.MessagingException), name


def test_public_names() -> None:
    """All that is promised is there, and nothing is public by accident."""
    modules = {
        "binding",
        "common",
        "connection",
        "context",
        "dispatcher",
        "messages",
        "notifying",
        "pool",
        "proxy",
        "removed",
        "service",
    }
    public = {name for name in vars(rpc) if not name.startswith("_")} - modules
    assert public - set(rpc.__all__) == {"Any", "Iterator", "annotations", "cast_elsewhere", "client_for"}
    assert set(rpc.__all__) <= public


def test_removed_options_are_warned_of(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    """An option of the old systems that has no effect is in the log, with what holds instead."""
    path = tmp_path / "service.conf"
    path.write_text("[DEFAULT]\nrpc_backend = fake\nrpc_conn_pool_size = 9\nrabbit_ha_queues = true\n")
    conf = cfg.ConfigOpts()
    rpc.init(conf)
    conf(["--config-file", str(path)], default_config_files=[])
    binding.transport()
    rpc.cleanup()
    assert "rpc_conn_pool_size of the configuration no longer has an effect: all threads share" in caplog.text
    assert "rabbit_ha_queues" in caplog.text
    assert "quorum_queues" in caplog.text


def test_guide_for_migrating_names_every_removed_option() -> None:
    """The options that are warned of are those in the table."""
    guide = (ROOT / "docs" / "migrating.md").read_text()
    rows = [line for line in guide.splitlines() if line.startswith("|") and "| removed" in line]
    named = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row.split("|")[1]) if "_" in name}
    assert set(REMOVED) <= named
    assert named - set(REMOVED) == {"check_for_lock", "serialize_remote_exception", "serialize_msg", "_safe_log"}
