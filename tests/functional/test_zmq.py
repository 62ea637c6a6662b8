"""The zmq driver among several processes: what is lost and what is not, and malformed input."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

import msgspec
import pytest
import zmq

from msgbus import (
    CallCancelled,
    MessageTooLarge,
    MessageUndeliverable,
    MessagingTimeout,
    OutcomeUnknown,
    RPCClient,
    Target,
    Transport,
    TransportBlocked,
    TransportUnavailable,
    get_rpc_client,
    get_rpc_transport,
)
from msgbus.conformance.checks.receiver import Receiver, message, send
from msgbus.conformance.endpoint import Journal, ServerSpec, make_conf
from msgbus.conformance.processes import ProcessServer
from msgbus.conformance.waiting import Task, gather, until
from msgbus.drivers.base import Address, Driver, Message
from msgbus.drivers.zmq import frames, node
from msgbus.drivers.zmq.matchmakers.base import Entry, Service
from msgbus.drivers.zmq.matchmakers.local import LocalMatchmaker
from tests.functional.brokers.processes import send_signal
from tests.functional.zmq_faults import cut_connections

TOPIC = Address("topic", "msgbus", "foo")
ONE = Address("server", "msgbus", "foo", "s1")


class Place:
    """A run directory, and all that is opened in it."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.run_dir = folder / "run"
        self.journal = Journal(str(folder))
        self._folder = folder
        self._transports: list[Transport] = []
        self._servers: list[ProcessServer] = []

    def transport(self, query: str = "", **options: Any) -> Transport:
        """A transport, and so a node, of its own."""
        url = f"zmq://{self.run_dir}" + (f"?{query}" if query else "")
        self._transports.append(get_rpc_transport(make_conf(options), url))
        return self._transports[-1]

    def driver(self, query: str = "") -> Driver:
        """The driver of a node of its own."""
        return self.transport(query).driver

    def serve(self, *names: str, query: str = "", **options: Any) -> list[ProcessServer]:
        """Servers of the conformance suite, in processes of their own."""
        url = f"zmq://{self.run_dir}" + (f"?{query}" if query else "")
        started = [ProcessServer(ServerSpec(url, "foo", name, str(self._folder), None, options)) for name in names]
        self._servers += started
        for server in started:
            server.ready()
        return started

    def files(self, ending: str) -> set[str]:
        """The files of nodes."""
        return {name for name in os.listdir(self.run_dir) if name.endswith(ending)}

    def socket_of(self, driver: Driver) -> str:
        """The path of a driver's socket."""
        node: Any = driver
        return str(self.run_dir / f"{node._node.id}.sock")

    def close(self) -> None:
        """Close all."""
        for opened in self._servers:
            opened.close()
        for transport in self._transports:
            transport.cleanup()


@pytest.fixture
def place(tmp_path: pathlib.Path) -> Iterator[Place]:
    """A place of this test's own, where nothing is left at the end."""
    before = set(threading.enumerate())
    found = Place(tmp_path)
    yield found
    found.close()
    until(lambda: set(threading.enumerate()) <= before, "the end of all threads")


class Peer:
    """A peer made by hand, which says what it likes."""

    def __init__(self, path: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVTIMEO, 15_000)
        self._socket.connect(f"ipc://{path}")
        self.node = os.path.basename(path).partition(".")[0]

    def say(self, *parts: bytes) -> None:
        """Send a message of these frames."""
        self._socket.send_multipart(parts)

    def hello(self, name: str = "f" * 16, protocol: int = frames.PROTOCOL, to: str | None = None) -> None:
        """Say who this is."""
        self.say(frames.hello(frames.Hello(protocol, name, self.node if to is None else to, 1 << 24, 1)))

    def hear(self) -> list[tuple[int, bytes]]:
        """The records of the next frame."""
        frame = self._socket.recv()
        return [(kind, frame[at:end]) for kind, at, end in frames.records(frame)]

    def close(self) -> None:
        """Close the connection without a BYE."""
        self._socket.close()
        self._context.term()


@pytest.fixture
def peers() -> Iterator[Callable[[str], Peer]]:
    """Makes peers that are closed at the end."""
    made: list[Peer] = []

    def make(path: str) -> Peer:
        made.append(Peer(path))
        return made[-1]

    yield make
    for peer in made:
        peer.close()


# What is written


def test_receipt_of_a_call_travels_with_its_answer(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call waits for its answer, so its receipt needs no frame of its own.

    A cast waits for its receipt, and gets it at once, whether it expires or not.
    """
    asked, write = [], frames.data

    def data(seq: int, wire: bytes, sent: Message, ttl: float | None, flags: int) -> bytes:
        asked.append(bool(flags & frames.LAZY_RECEIPT))
        return write(seq, wire, sent, ttl, flags)

    place.serve("s1")
    client = get_rpc_client(place.transport(), Target(topic="foo"))
    monkeypatch.setattr(frames, "data", data)
    assert client.call({}, "echo", value=1) == 1
    client.cast({}, "echo", value=1)
    client.prepare(timeout=60).cast({}, "echo", value=1)
    client.prepare(timeout=60).cast_many({}, [("echo", {"value": 1})])
    assert asked == [True, False, False, False]


def test_answer_is_sent_without_looking_for_other_nodes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run directory is looked at for each request, since it is for whoever is there now, but for no answer."""
    looked: list[str] = []
    changed = LocalMatchmaker.changed

    def count(self: LocalMatchmaker) -> bool:
        looked.append(self.node)
        return changed(self)

    serving, calling = place.driver(), place.driver()
    receiver = Receiver()
    receiver.subscribe(serving, TOPIC)
    inbox = calling.open_inbox(lambda delivery: None)
    inbox.ready.result(15)
    send(calling, TOPIC, "request")
    send(serving, inbox.address, "first")
    monkeypatch.setattr(LocalMatchmaker, "changed", count)
    nodes: list[Any] = [serving, calling]
    server, client = (node._node.id for node in nodes)
    for n in range(20):
        send(serving, inbox.address, str(n))
    # Maintenance also looks, every two seconds.
    assert looked.count(server) < 10
    del looked[:]
    for n in range(20):
        send(calling, TOPIC, str(n))
    assert looked.count(client) >= 20


# A run directory that is removed


@pytest.mark.parametrize("what", ["the socket", "all files", "the directory"])
def test_new_clients_find_a_server_whose_files_were_removed(place: Place, what: str) -> None:
    """It creates its socket again with the rest, and existing connections go on."""
    place.serve("s1")
    client = get_rpc_client(place.transport(), Target(topic="foo"), timeout=30)
    assert client.call({}, "echo", value=1) == 1
    if what == "the directory":
        shutil.rmtree(place.run_dir)
    else:
        for name in place.files(".sock" if what == "the socket" else ""):
            os.unlink(place.run_dir / name)
    assert client.call({}, "echo", value=2) == 2
    until(lambda: place.run_dir.exists() and len(place.files(".sock")) == 2, "both sockets are there again", 30)
    late = get_rpc_client(place.transport(), Target(topic="foo"), timeout=30)
    assert late.call({}, "echo", value=3) == 3
    assert client.call({}, "echo", value=4) == 4


# Servers that die


def test_no_cast_is_lost_with_a_killed_server(place: Place) -> None:
    """Of 2,000 at_least_once casts, 1,000 and more of them not finished, all run although one of three is killed."""
    servers = place.serve("s1", "s2", "s3", executor_thread_pool_size=1)
    client = get_rpc_client(place.transport(), Target(topic="foo"), timeout=30, delivery="at_least_once")
    for name in ("s1", "s2", "s3"):
        client.prepare(server=name).cast({}, "hold", key=name, gate="go")
    for n in range(2000):
        client.cast({}, "work", key=f"k{n}", seconds=0.005)
    place.journal.open_gate("go")
    until(lambda: sum(e.server == "s1" for e in place.journal.entries("done")) >= 20, "some casts are done")
    servers[0].kill()
    assert 2000 - len(place.journal.entries("done")) >= 1000
    wanted = {f"k{n}" for n in range(2000)}
    until(lambda: {entry.key for entry in place.journal.entries("done")} >= wanted, "all casts are done", 60)
    runs = Counter(entry.key for entry in place.journal.entries("run"))
    assert sum(runs[key] > 1 for key in wanted) <= 64 + 1, "only what the dead server had begun is run again"


def test_files_of_a_killed_server_are_removed_and_calls_to_it_are_undeliverable(place: Place) -> None:
    """Its files go when a node that was connected notices, and a call to it is undeliverable at once."""
    (server,) = place.serve("s1")
    client = get_rpc_client(place.transport(), Target(topic="foo"), timeout=30)
    assert client.call({}, "echo", value=1) == 1
    assert len(place.files(".node")) == 2
    server.kill()
    until(lambda: all(len(place.files(ending)) == 1 for ending in (".node", ".lock", ".sock")), "its files are removed")
    call = Task(client.call, {}, "echo", value=1)
    assert isinstance(call.error(), MessageUndeliverable)
    assert call.seconds < 10


def test_message_without_a_receipt_fails_as_maybe_delivered_when_its_server_is_killed(place: Place) -> None:
    """A message without a receipt fails as maybe delivered as soon as its server has died, not at its deadline."""
    (server,) = place.serve("s1")
    driver = place.driver()
    send(driver, ONE, b"{}")
    send_signal(server.pid, signal.SIGSTOP)
    sent = driver.send(ONE, message("x", ttl=60), mandatory=True)
    with pytest.raises(TimeoutError):
        sent.result(0.2)
    server.kill()
    error = sent.exception(15)
    assert isinstance(error, TransportUnavailable)
    assert error.maybe_delivered


DIES = """
import os, sys, time
from msgbus import Target, get_rpc_server, get_rpc_transport
from msgbus.conformance.endpoint import Journal, make_conf

class Endpoint:
    def work(self, _ctxt, key):
        Journal(sys.argv[2]).add("run", key, "s1")
        if sys.argv[3] == "dies":
            os._exit(7)
        return key

server = get_rpc_server(get_rpc_transport(make_conf({}), sys.argv[1]), Target(topic="foo", server="s1"), [Endpoint()])
server.start(30)
print("ready", flush=True)
sys.stdin.read()
server.stop()
server.wait(10)
server.transport.cleanup()
"""


@contextlib.contextmanager
def one_that(does: str, place: Place) -> Iterator[subprocess.Popen[str]]:
    """A server in a process that "dies" in its method, or "works"."""
    command = [sys.executable, "-c", DIES, f"zmq://{place.run_dir}", str(place.journal.folder), does]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        assert process.stdin is not None
        process.stdin.close()
        process.wait(30)


def use(client: RPCClient, verb: str) -> Any:
    """Run `work` by one of the verbs, to its end."""
    outcome = getattr(client, verb)({}, "work", key="k")
    return list(outcome) if verb == "multicall" else outcome


@pytest.mark.parametrize("verb", ["call", "cast", "multicall"])
def test_request_that_kills_its_only_server_fails_as_maybe_delivered(place: Place, verb: str) -> None:
    """Under at_least_once the error at the deadline says so, and who was lost: not merely that nobody is there."""
    client = get_rpc_client(place.transport(), Target(topic="foo"), timeout=3, delivery="at_least_once")
    with one_that("dies", place) as server:
        task = Task(use, client, verb)
        assert server.wait(30) == 7
    error = task.error()
    if verb == "cast" and error is None:
        return  # Its receipt was faster than the end of the process: it waits for another server.
    if verb != "cast" and isinstance(error, MessagingTimeout):
        assert "has taken the request" in str(error)
        return
    assert isinstance(error, TransportUnavailable), error
    assert error.maybe_delivered
    assert re.search("may have run.* was lost .*nobody listens", str(error))
    assert task.seconds > 2


@pytest.mark.parametrize("verb", ["call", "cast", "multicall"])
def test_server_that_is_started_again_in_time_runs_the_request_that_killed_it(place: Place, verb: str) -> None:
    """Under at_least_once the next server runs it, and a call has its answer."""
    client = get_rpc_client(place.transport(), Target(topic="foo"), timeout=60, delivery="at_least_once")
    with one_that("dies", place) as server:
        task = Task(use, client, verb)
        assert server.wait(30) == 7
    with one_that("works", place):
        assert task.result(60) == {"call": "k", "cast": None, "multicall": ["k"]}[verb]
        until(lambda: len(place.journal.entries("run", "k")) == 2, "it has run again")


@pytest.mark.parametrize(
    ("delivery", "kind"), [("at_most_once", OutcomeUnknown), ("at_least_once", TransportUnavailable)]
)
def test_cast_to_a_frozen_server_fails_at_its_own_deadline(
    place: Place, delivery: Any, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that may have been delivered, however short it is; no look every now and then has to come first."""
    monkeypatch.setattr(node, "SLOW_TICK", 3600.0)
    (frozen,) = place.serve("s1")
    client = get_rpc_client(place.transport(), Target(topic="foo"), delivery=delivery)
    client.prepare(timeout=30).call({}, "echo", value=1)
    send_signal(frozen.pid, signal.SIGSTOP)
    try:
        longer = Task(client.prepare(timeout=60).cast, {}, "note", key="longer")
        for timeout in (0.05, 0.1, 0.3, 0.7):
            with pytest.raises(kind, match="did not confirm a message"):
                client.prepare(timeout=timeout).cast({}, "note", key="k")
        assert not longer.done
    finally:
        os.kill(frozen.pid, signal.SIGCONT)
    longer.result()


def test_messages_of_a_frozen_server_go_to_another(place: Place) -> None:
    """A server that is silent for too long is taken for lost, and what it had goes to another."""
    (frozen,) = place.serve("s1", query="heartbeat=0.5")
    client = get_rpc_client(place.transport("heartbeat=0.5"), Target(topic="foo"), timeout=60, delivery="at_least_once")
    held = Task(client.call, {}, "hold", key="k", gate="never")
    until(lambda: place.journal.entries("run", "k"), "it runs")
    place.serve("s2", query="heartbeat=0.5")
    send_signal(frozen.pid, signal.SIGSTOP)
    try:
        until(lambda: len(place.journal.entries("run", "k")) == 2, "it runs at the other server")
        assert client.call({}, "note", key="next") == "s2"
    finally:
        place.journal.open_gate("never")
        frozen.kill()
    assert held.result() == "s2"


def test_casts_of_a_killed_sender_are_run(place: Place) -> None:
    """Casts that were taken live with their server, even if their sender is killed."""
    place.serve("s1", executor_thread_pool_size=1, rpc_prefetch=1)
    client = get_rpc_client(place.transport(), Target(topic="foo"), timeout=30)
    client.prepare(server="s1").cast({}, "hold", key="held", gate="go")
    until(lambda: place.journal.entries("run", "held"), "the server is busy")
    code = (
        "import sys, os, msgbus; from msgbus.conformance.endpoint import make_conf\n"
        "t = msgbus.get_rpc_transport(make_conf({}), sys.argv[1])\n"
        "c = msgbus.get_rpc_client(t, msgbus.Target(topic='foo'), delivery='at_least_once')\n"
        "for n in range(20): c.cast({}, 'note', key=f'k{n}')\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, f"zmq://{place.run_dir}"], check=False, timeout=60)
    place.journal.open_gate("go")
    wanted = {f"k{n}" for n in range(20)}
    until(lambda: {entry.key for entry in place.journal.entries("run")} >= wanted, "all casts are run")


def test_message_of_a_killed_server_waits_for_the_next_server(place: Place) -> None:
    """What a server had, and no other is there to take, goes to the next that comes, as redelivered."""
    (server,) = place.serve("s1")
    client = get_rpc_client(place.transport(), Target(topic="foo"), timeout=30, delivery="at_least_once")
    client.cast({}, "hold", key="k", gate="go")
    until(lambda: place.journal.entries("run", "k"), "it runs")
    server.kill()
    until(lambda: len(place.files(".node")) == 1, "it is known to be dead")
    place.journal.open_gate("go")
    place.serve("s2")
    until(lambda: [e.server for e in place.journal.entries("done", "k")] == ["s2"], "the next one has run it")


def test_unsettled_messages_are_redelivered_after_a_broken_connection(place: Place) -> None:
    """Both sides live: unsettled messages come again as redelivered, and accepting the old deliveries returns False."""
    sender, receiver = place.driver(), Receiver(accept=False)
    receiver.subscribe(place.driver(), TOPIC, ONE, prefetch=2)
    for n in range(4):
        send(sender, TOPIC, str(n))
    receiver.wait(2)
    cut_connections(place.run_dir)
    first = receiver.wait(4)
    assert [delivery.redelivered for delivery in first] == [False, False, True, True]
    assert [delivery.accept() for delivery in first[:2]] == [False, False]
    assert all(delivery.accept() for delivery in first[2:])
    receiver.wait(6)
    assert receiver.bodies == ["0", "1", "0", "1", "2", "3"]
    send(sender, ONE, "after")
    receiver.wait_for("after")


# Busy servers


def test_messages_to_a_full_server_wait_at_their_sender_or_fail_as_blocked(place: Place) -> None:
    """Past prefetch and backlog a message waits at its sender, until its deadline, or until there is room, in order."""
    receiver = Receiver(accept=False)
    receiver.subscribe(place.driver("backlog=3"), TOPIC, prefetch=2)
    sender = place.driver()
    for n in range(5):
        send(sender, TOPIC, str(n))
    blocked = sender.send(TOPIC, message("never", ttl=0.3), mandatory=True)
    waiting = [sender.send(TOPIC, message(str(n)), mandatory=True) for n in range(5, 40)]
    error = blocked.exception(15)
    assert isinstance(error, TransportBlocked)
    assert not error.maybe_delivered
    assert not any(future.done() for future in waiting)
    for settled in range(40):
        receiver.wait(min(40, settled + 2))
        assert receiver.deliveries[settled].accept()
    for future in waiting:
        future.result(15)
    receiver.wait(40)
    assert receiver.bodies == [str(n) for n in range(40)]


@pytest.mark.parametrize("kind", ["topic", "fanout"])
def test_messages_go_on_when_a_full_subscriber_is_replaced(place: Place, kind: Any) -> None:
    """A subscriber without room leaves, and at the same moment another one comes in its place, in the same process.

    Nothing waits for the one that has left. (What is sent while neither is there reaches nobody.)
    """
    sending, serving = place.driver(), place.driver("backlog=1")
    address = Address(kind, "msgbus", "foo")
    own = address._replace(server="s1") if kind == "fanout" else address
    full, idle = Receiver(accept=False), Receiver()
    subscription = full.subscribe(serving, own, prefetch=1)
    sent = [sending.send(address, message(str(n)), mandatory=False) for n in range(10)]
    full.wait(1)
    sent[1].result(15)  # It waits there, and the others have come back.
    closed = subscription.close()
    idle.subscribe(serving, own)
    closed.result(15)
    for future in sent:
        future.result(15)


def test_fanout_waits_for_a_full_subscriber(place: Place) -> None:
    """A subscriber of a fanout that takes nothing is waited for, and nothing is dropped."""
    slow, quick = Receiver(accept=False), Receiver()
    slow.subscribe(place.driver("backlog=2"), Address("fanout", "msgbus", "foo", "slow"), prefetch=1)
    quick.subscribe(place.driver("backlog=2"), Address("fanout", "msgbus", "foo", "quick"), prefetch=1)
    sender = place.driver()
    to_all = Address("fanout", "msgbus", "foo")
    futures = [sender.send(to_all, message(str(n)), mandatory=False) for n in range(20)]
    quick.wait(20)
    assert [future.result(15).reached for future in futures[:3]] == [2, 2, 2]
    assert not futures[-1].done()
    for settled in range(20):
        slow.wait(settled + 1)[settled].accept()
    assert {future.result(15).reached for future in futures} == {2}
    quick.wait(20)
    assert slow.bodies == quick.bodies == [str(n) for n in range(20)]


def test_messages_that_wait_at_a_busy_server_go_to_a_new_one(place: Place) -> None:
    """All but what was delivered is recalled for a server that comes later, and is not marked as redelivered."""
    busy, idle, sender = Receiver(accept=False), Receiver(), place.driver()
    busy.subscribe(place.driver(), TOPIC, prefetch=3)
    for n in range(200):
        send(sender, TOPIC, str(n))
    idle.subscribe(place.driver(), TOPIC, prefetch=10)
    send(sender, TOPIC, "one more")
    idle.wait(198)
    assert len(busy.deliveries) == 3
    assert not any(delivery.redelivered for delivery in idle.deliveries)
    assert sorted(busy.bodies + idle.bodies) == sorted([*map(str, range(200)), "one more"])


@pytest.mark.parametrize("count", [1, 20, 300])
def test_sender_that_closes_at_once_loses_nothing(place: Place, count: int, caplog: pytest.LogCaptureFixture) -> None:
    """What was recalled from a busy server when the sender closes goes to another one, and nobody says it is lost."""
    receivers = [Receiver(), Receiver()]
    for receiver in receivers:
        receiver.subscribe(place.driver(), TOPIC, prefetch=2)
    expected: list[str] = []
    for sender_number in range(10):
        sender = place.driver()
        bodies = [f"{sender_number}-{n}" for n in range(count)]
        sent = [sender.send(TOPIC, message(body), mandatory=True) for body in bodies]
        for each in sent:
            each.result(20)
        sender.close()
        expected += bodies
    until(lambda: sum(len(receiver.bodies) for receiver in receivers) >= len(expected), "all are delivered", 60)
    assert sorted(receivers[0].bodies + receivers[1].bodies) == sorted(expected)
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_stopping_server_gives_back_what_waits(place: Place) -> None:
    """What was not delivered goes to another, unmarked; what was is settled as usual."""
    first, second, sender = Receiver(accept=False), Receiver(), place.driver()
    stopping = first.subscribe(place.driver(), TOPIC, prefetch=2)
    for n in range(10):
        send(sender, TOPIC, str(n))
    stopping.stop().result(15)
    second.subscribe(place.driver(), TOPIC)
    second.wait(8)
    assert sorted(first.bodies + second.bodies, key=int) == [str(n) for n in range(10)]
    assert not any(delivery.redelivered for delivery in second.deliveries)
    assert [delivery.accept() for delivery in first.deliveries] == [True, True]


def test_stopping_server_reroutes_the_messages_of_a_dead_sender(place: Place) -> None:
    """The server that stops finds another one for them."""
    first, second = Receiver(accept=False), Receiver()
    subscription = first.subscribe(place.driver(), TOPIC, prefetch=2)
    sender = place.driver()
    for n in range(6):
        send(sender, TOPIC, str(n))
    first.wait(2)
    sender.close()
    second.subscribe(place.driver(), TOPIC)
    first.deliveries[0].accept()
    subscription.close().result(15)
    second.wait(5)
    assert sorted(second.bodies) == ["1", "2", "3", "4", "5"]
    marked = [delivery.message.body.decode() for delivery in second.deliveries if delivery.redelivered]
    assert marked == first.bodies[1:], "what was delivered, and not accepted"


# Many, and doubles


def test_many_servers_share_the_work(place: Place) -> None:
    """Each of fifteen nodes gets three quarters of an equal share or more, and a fanout reaches all of them."""
    receivers = [Receiver() for _ in range(15)]
    for n, receiver in enumerate(receivers):
        receiver.subscribe(place.driver(), TOPIC, Address("fanout", "msgbus", "foo", f"s{n}"))
    sender = place.driver()
    assert sender.send(Address("fanout", "msgbus", "foo"), message("all"), mandatory=False).result(15).reached == 15
    for n in range(300):
        send(sender, TOPIC, str(n))
    until(lambda: sum(len(receiver.deliveries) for receiver in receivers) == 315, "all deliveries")
    assert min(len(receiver.deliveries) for receiver in receivers) >= 1 + 15


@pytest.mark.timeout(400)
def test_two_hundred_servers_answer_a_ping(place: Place) -> None:
    """All of them, within what a ping takes; each is a node, with connections of its own."""
    code = (
        "import sys; from msgbus import Target, get_rpc_server, get_rpc_transport\n"
        "from msgbus.conformance.endpoint import make_conf\n"
        "made = [get_rpc_transport(make_conf({}), sys.argv[1]) for _ in range(50)]\n"
        "target = Target(topic='many')\n"
        "servers = [get_rpc_server(t, target(server=f'{sys.argv[2]}-{n}'), [object()]) for n, t in enumerate(made)]\n"
        "for server in servers: server.start(60)\n"
        "print('ready', flush=True); sys.stdin.read()\n"
        "for server in servers: server.wait(10)\n"
        "for transport in made: transport.cleanup()\n"
    )
    url = f"zmq://{place.run_dir}"
    with contextlib.ExitStack() as opened:
        for name in "abcd":
            words = [sys.executable, "-c", code, url, name]
            process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            opened.enter_context(process)
            assert process.stdin is not None
            opened.callback(process.stdin.close)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        msgbus = str(pathlib.Path(sys.executable).parent / "msgbus")
        words = [msgbus, "ping", "many", "--timeout", "30", "--json", "--url", url]
        ping = subprocess.run(words, capture_output=True, text=True, timeout=90, check=True)
        names = {msgspec.json.decode(line)["server"] for line in ping.stdout.splitlines()}
    assert names == {f"{name}-{n}" for name in "abcd" for n in range(50)}


def test_nodes_that_start_at_the_same_moment_find_each_other(place: Place) -> None:
    """A server that is ready is found by all that send afterwards, however many start at once."""
    receivers = {f"s{n}": Receiver() for n in range(8)}
    drivers = {name: place.driver() for name in receivers}
    addresses = {name: Address("server", "msgbus", "foo", name) for name in receivers}
    gather([Task(receivers[name].subscribe, drivers[name], addresses[name]) for name in receivers])
    for driver in drivers.values():
        for address in addresses.values():
            send(driver, address, "x")
    for receiver in receivers.values():
        receiver.wait(8)


def test_two_servers_of_one_name_share_its_messages_and_are_logged(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """They share what is sent to that name, and the log warns of it."""
    first, second, sender = Receiver(), Receiver(), place.driver()
    first.subscribe(place.driver(), ONE)
    with caplog.at_level(logging.WARNING):
        second.subscribe(place.driver(), ONE)
    assert "already served by node" in caplog.text

    def both_have_some() -> bool:
        # One at a time: the sender may be connected with one of them before it is with the other.
        send(sender, ONE, "x")
        return bool(first.deliveries and second.deliveries)

    until(both_have_some, "a message for each of them", 60)


# Malformed input


def test_malformed_frames_disturb_nobody_else(
    place: Place, peers: Callable[[str], Peer], caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever a peer sends to a node's socket, before a hello or after it, others do not notice."""
    receiver, sender, served = Receiver(), place.driver(), place.driver()
    receiver.subscribe(served, TOPIC)
    send(sender, TOPIC, "before")
    dice = random.Random(1)
    path = place.socket_of(served)
    strangers = [peers(path) for _ in range(4)]
    with caplog.at_level(logging.WARNING):
        for n in range(50):
            strangers[0].say(dice.randbytes(dice.randrange(1, 60)))
            strangers[0].say(*(dice.randbytes(5) for _ in range(2 + n % 3)))
        strangers[1].hello(protocol=99)
        assert strangers[1].hear()[0][0] == frames.BYE
        strangers[2].hello(to="0" * 16)
        assert strangers[2].hear()[0][0] == frames.BYE
        strangers[2].say(frames.record(frames.HELLO, b"\x81\xa1x" + b"\x91" * 100_000 + b"\xc0"))
        assert strangers[2].hear()[0][0] == frames.BYE
        liar = strangers[3]
        for garbage in (b"\xff" * 30, frames.record(99), frames.record(frames.DATA, b"x"), b"\x04\xff\xff\xff\xff"):
            liar.hello()
            assert liar.hear()[0][0] == frames.HELLO
            liar.say(garbage)
            assert liar.hear()[0][0] == frames.BYE
    assert "malformed frame from" in caplog.text
    assert len(caplog.records) < 10, "the log is not flooded"
    send(sender, TOPIC, "after")
    receiver.wait_for("after")


def test_bytes_that_are_not_zmtp_disturb_nobody_else(place: Place) -> None:
    """A raw connection that sends other things, or nothing at all, disturbs nobody."""
    receiver, sender, served = Receiver(), place.driver(), place.driver("connect_timeout=0.2")
    receiver.subscribe(served, TOPIC)
    with contextlib.ExitStack() as opened:
        for data in (b"GET / HTTP/1.1\r\n\r\n" * 10, b"\xff" * 5000, b"\x00" * 5000, b""):
            raw = opened.enter_context(socket.socket(socket.AF_UNIX))
            raw.connect(place.socket_of(served))
            with contextlib.suppress(ConnectionError):
                raw.sendall(data)
        send(sender, TOPIC, "between")
    send(sender, TOPIC, "after")
    receiver.wait(2)
    assert receiver.bodies == ["between", "after"]


def test_too_large_message_harms_only_its_sender(place: Place, peers: Callable[[str], Peer]) -> None:
    """A node that takes less than the sender is not sent more; a peer that sends it loses its connection."""
    receiver, sender, served = Receiver(), place.driver(), place.driver("max_message_size=2000")
    receiver.subscribe(served, TOPIC)
    send(sender, TOPIC, "before")
    error = sender.send(TOPIC, message(b"x" * 3000), mandatory=True).exception(15)
    assert isinstance(error, MessageTooLarge)
    rude = peers(place.socket_of(served))
    rude.hello()
    assert rude.hear()[0][0] == frames.HELLO
    rude.say(b"x" * (frames.OVERHEAD + 5000))
    send(sender, TOPIC, "after")
    receiver.wait_for("after")


def pretend(place: Place, node: str, endpoint: str) -> int:
    """Make an entry of a node that serves `TOPIC`, and whose process lives; returns the descriptor of its lock."""
    lock = os.open(place.run_dir / f"{node}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    entry = Entry(node, 1, "here", [endpoint], [Service((*TOPIC,), 1, 10)])
    (place.run_dir / f"{node}.1.node").write_bytes(msgspec.msgpack.encode(entry))
    (place.run_dir / "changes").write_bytes(os.urandom(8))
    return lock


def test_message_waits_for_an_unreachable_server_until_its_deadline(place: Place) -> None:
    """One that is known, and never answers, is tried until the message's deadline; the text says where."""
    sender = place.driver("connect_timeout=0.2")
    send(sender, Address("fanout", "msgbus", "foo"), "x", mandatory=False)
    node = "0123456789abcdef"
    path = str(place.run_dir / "mute")
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(path)
        mute.listen(10)
        lock = pretend(place, node, f"ipc://{path}")
        try:
            error = sender.send(TOPIC, message("x", ttl=0.7), mandatory=True).exception(15)
            assert isinstance(error, TransportUnavailable)
            assert not error.maybe_delivered
            assert all(known in str(error) for known in (node, path, "no answer"))
            # It is counted, as its process lives; how much waits there nobody can say.
            depth = Task(lambda: sender.inspect(TOPIC).result(15))
            assert (depth.result().consumers, depth.result().messages) == (1, None)
        finally:
            os.close(lock)


def test_server_that_answers_with_another_id_gets_no_message(place: Place) -> None:
    """A node that listens at the endpoint of another is not taken for it."""
    sender, other = place.driver(), place.driver()
    Receiver().subscribe(other, ONE)
    send(sender, ONE, "x")
    lock = pretend(place, "0123456789abcdef", f"ipc://{place.socket_of(other)}")
    try:
        error = sender.send(TOPIC, message("x", ttl=0.5), mandatory=True).exception(15)
        assert isinstance(error, TransportUnavailable)
        assert not error.maybe_delivered
    finally:
        os.close(lock)


def test_connection_is_kept_while_an_entry_names_another_node_at_its_endpoint(place: Place) -> None:
    """As after a crash: the process was started again at the same address, and its former entry is still there."""
    receiver, sender, other = Receiver(), place.driver(), place.driver()
    receiver.subscribe(other, ONE)
    send(sender, ONE, "before")
    lock = pretend(place, "0123456789abcdef", f"ipc://{place.socket_of(other)}")
    try:
        for_nobody = sender.send(TOPIC, message("x", ttl=0.5), mandatory=True)
        while not for_nobody.done():
            send(sender, ONE, "meanwhile")
        error = for_nobody.exception()
        assert isinstance(error, TransportUnavailable)
        assert "was dialled there" in str(error)
    finally:
        os.close(lock)


class Impostor:
    """Listens at an endpoint, says that it is whatever node is looked for, and takes each message.

    Attributes:
        looked_for: the nodes that were, in order.
    """

    def __init__(self, path: str) -> None:
        self.looked_for: list[str] = []
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(f"ipc://{path}")

    def answer(self, sent: Future[Any]) -> bool:
        """Answer what has come, or comes in a moment. Returns whether a message is sent."""
        if not self._socket.poll(10):
            return sent.done()
        name, frame = self._socket.recv_multipart()
        for kind, at, end in frames.records(frame):
            if kind == frames.HELLO:
                hello = frames.read_hello(frame)
                self.looked_for.append(hello.to)
                self._say(name, frames.hello(frames.Hello(frames.PROTOCOL, hello.to, "", 1 << 24, hello.session)))
            elif kind == frames.DATA:
                self._say(name, frames.numbers(frames.SETTLED, [frames.read_data(frame, at, end).seq]))
        return sent.done()

    def _say(self, name: bytes, record: bytes) -> None:
        self._socket.send_multipart([name, record])

    def close(self) -> None:
        """Close it."""
        self._socket.close()
        self._context.term()


def test_endpoint_of_a_node_that_is_not_known_any_more_is_dialled_for_another(place: Place) -> None:
    """Its connection may only seem to be there: the host has failed, and nothing is sent that would show it."""
    sender = place.driver("heartbeat=0")
    send(sender, Address("fanout", "msgbus", "foo"), "x", mandatory=False)
    path = str(place.run_dir / "mute")
    impostor = Impostor(path)
    try:
        for node in ("0123456789abcdef", "fedcba9876543210"):
            lock = pretend(place, node, f"ipc://{path}")
            sent = sender.send(TOPIC, message("x", ttl=60.0), mandatory=True)
            until(partial(impostor.answer, sent), "the message is taken")
            sent.result()
            os.close(lock)
            for ending in ("lock", "1.node"):
                (place.run_dir / f"{node}.{ending}").unlink(missing_ok=True)
            (place.run_dir / "changes").write_bytes(os.urandom(8))
        assert impostor.looked_for == ["0123456789abcdef", "fedcba9876543210"]
    finally:
        impostor.close()


# Places


def test_run_directory_that_others_can_write_to_is_refused_until_that_is_changed(place: Place) -> None:
    """Every verb fails with the reason, and works once that has been put right."""
    place.run_dir.mkdir(mode=0o700)
    place.run_dir.chmod(0o777)
    driver = place.driver()
    subscription = driver.subscribe([TOPIC], Receiver().take, prefetch=1)
    assert isinstance(subscription.ready.exception(15), TransportUnavailable)
    error = driver.send(TOPIC, message("x"), mandatory=False).exception(15)
    assert isinstance(error, TransportUnavailable)
    assert "mode 777" in str(error)
    assert "mode 777" in driver.state
    place.run_dir.chmod(0o700)
    Receiver().subscribe(driver, TOPIC)
    send(driver, TOPIC, "x")


@pytest.fixture
def small_disk(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A file system of 64 KiB, which only root can make."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "msgbus", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk_is_reported_and_existing_connections_go_on(place: Place, small_disk: pathlib.Path) -> None:
    """What needs to write fails with the reason; when there is room again, it works."""
    place.run_dir = small_disk
    receiver, sender, served = Receiver(), place.driver(), place.driver()
    receiver.subscribe(served, TOPIC)
    send(sender, TOPIC, "before")
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 1024)
    error = served.subscribe([ONE], Receiver().take, prefetch=1).ready.exception(15)
    assert isinstance(error, TransportUnavailable)
    assert "No space left on device" in str(error)
    newcomer = place.driver()
    refused = newcomer.send(TOPIC, message("x"), mandatory=True).exception(15)
    assert isinstance(refused, TransportUnavailable)
    assert "No space left on device" in str(refused)
    assert "No space left on device" in newcomer.state
    send(sender, TOPIC, "meanwhile")
    filler.unlink()
    receiver.subscribe(served, ONE)
    send(newcomer, ONE, "after")
    receiver.wait(3)
    assert receiver.bodies == ["before", "meanwhile", "after"]
    assert not [name for name in os.listdir(small_disk) if name.endswith(".tmp")]


def test_unreadable_run_directory_is_named_in_the_error() -> None:
    """The text says which, and why, for a user who is not root."""
    code = (
        "import os, sys; from msgbus.drivers.zmq.matchmakers.local import LocalMatchmaker\n"
        "os.geteuid() or os.setuid(65534)\n"
        "try: LocalMatchmaker(sys.argv[1]).open()\n"
        "except Exception as exc: print(type(exc).__name__, exc)"
    )
    with tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(made)
        if os.geteuid() == 0:
            os.chown(folder, 65534, 65534)
        folder.chmod(0o300)
        run = subprocess.run([sys.executable, "-c", code, made], capture_output=True, text=True, check=False)
    why = "it cannot be read and written (mode 300)"
    assert run.stdout.startswith(f"TransportUnavailable the run directory {made} cannot be used: {why}")


def test_node_with_the_option_listen_is_reached_over_tcp(place: Place) -> None:
    """With the option listen they can be reached there as well: here, where somebody removed a socket."""
    receiver, sender, served = Receiver(), place.driver(), place.driver("listen=tcp://127.0.0.1:*")
    receiver.subscribe(served, TOPIC)
    os.unlink(place.socket_of(served))
    send(sender, TOPIC, "x")
    receiver.wait_for("x")


def test_forked_child_starts_clean_and_its_parent_goes_on(place: Place) -> None:
    """It has a node of its own, what it inherited fails there, and its parent goes on as if nothing had been."""
    receiver, driver = Receiver(accept=False), place.driver()
    receiver.subscribe(driver, TOPIC, prefetch=1)
    send(driver, TOPIC, "parent")
    inherited = driver.inspect(TOPIC)
    lock = threading.Lock()
    with lock:
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            error = inherited.exception(15)
            assert error is None or isinstance(error, CallCancelled)
            child = Receiver(accept=False)
            child.subscribe(driver, ONE, prefetch=1)
            send(driver, ONE, "child")
            child.wait_for("child")
            driver.close()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert len(place.files(".lock")) == 1
    other = place.driver()
    send(other, TOPIC, "still there")
    receiver.deliveries[0].accept()
    receiver.wait_for("still there")
