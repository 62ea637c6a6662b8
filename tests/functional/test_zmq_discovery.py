"""The zmq driver with each matchmaker: servers that start, stop and die, and how soon others know."""

from __future__ import annotations

import logging
import os
import pathlib
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

from msgbus import MessageUndeliverable, Target, get_rpc_client
from msgbus.conformance.checks.receiver import Receiver, message, send
from msgbus.conformance.waiting import Task, until
from msgbus.drivers.base import Address
from tests.functional.brokers.processes import send_signal
from tests.functional.zmq_meetings import FileMeeting, LocalMeeting, Meeting, RedisMeeting

TOPIC = Address("topic", "msgbus", "foo")
ALL = Address("fanout", "msgbus", "foo")


def one(name: str) -> Address:
    """The address of one server."""
    return Address("server", "msgbus", "foo", name)


def serve(meeting: Meeting, name: str, receiver: Receiver, prefetch: int = 100) -> None:
    """Have a receiver serve as a server of that name does, in this process."""
    addresses = (TOPIC, one(name), ALL._replace(server=name))
    receiver.subscribe(meeting.node(name), *addresses, prefetch=prefetch)


@pytest.fixture(params=["local", "file", "redis"])
def meeting(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[Meeting]:
    """A place of each kind."""
    made: Meeting
    if request.param == "local":
        made = LocalMeeting(tmp_path)
    elif request.param == "file":
        made = FileMeeting(tmp_path)
    else:
        made = RedisMeeting(tmp_path, request.getfixturevalue("redis"))
    yield made
    made.close()


def test_servers_are_found_when_ready_and_get_nothing_once_closed(meeting: Meeting) -> None:
    """A ready server gets the next message; after the last one has closed, messages are undeliverable."""
    client = meeting.node()
    error = client.send(TOPIC, message("x"), mandatory=True).exception(15)
    assert isinstance(error, MessageUndeliverable)
    assert client.send(ALL, message("x"), mandatory=False).result(15).reached == 0
    receivers = {name: Receiver() for name in ("s1", "s2", "s3")}
    for count, name in enumerate(receivers, start=1):
        serve(meeting, name, receivers[name])
        assert client.send(ALL, message("all"), mandatory=False).result(15).reached == count
        send(client, one(name), name)
        receivers[name].wait_for(name)
    for n in range(30):
        send(client, TOPIC, str(n))
    until(lambda: sum(len(r.deliveries) for r in receivers.values()) == 6 + 3 + 30, "all deliveries")
    assert min(len(r.deliveries) for r in receivers.values()) >= 5
    meeting.close()
    client = meeting.node()
    call = Task(lambda: client.send(TOPIC, message("x"), mandatory=True).exception(15))
    assert isinstance(call.result(), MessageUndeliverable)
    assert call.seconds < 5
    assert client.send(ALL, message("x"), mandatory=False).result(15).reached == 0


def test_messages_of_a_killed_server_go_to_another(meeting: Meeting) -> None:
    """What it had goes to another at once, and a call to its name is undeliverable before any lease runs out."""
    first, _ = meeting.serve("s1", "s2", executor_thread_pool_size=4)
    client = get_rpc_client(meeting.transport(), Target(topic="foo"), timeout=30, delivery="at_least_once")
    for name in ("s1", "s2"):
        client.prepare(server=name).cast({}, "note", key=f"hello {name}")
    for n in range(40):
        client.cast({}, "hold", key=f"k{n}", gate="go")
    until(lambda: sum(e.server == "s1" for e in meeting.journal.entries("run")) >= 4, "the first is busy")
    first.kill()
    meeting.journal.open_gate("go")
    wanted = {f"k{n}" for n in range(40)}
    until(lambda: {entry.key for entry in meeting.journal.entries("done")} >= wanted, "all casts are done", 8)
    call = Task(client.prepare(server="s1", timeout=8).call, {}, "echo", value=1)
    assert isinstance(call.error(), MessageUndeliverable)
    assert client.call({}, "echo", value=1) == 1
    client.fanout_cast({}, "note", key="to all")
    until(lambda: [e.server for e in meeting.journal.entries("run", "to all")] == ["s2"], "the other one has it")


def test_no_cast_is_lost_with_one_of_three(meeting: Meeting) -> None:
    """Of 2,000 at_least_once casts, 1,000 and more of them not finished, all run although one of three is killed."""
    servers = meeting.serve("s1", "s2", "s3", executor_thread_pool_size=1)
    client = get_rpc_client(meeting.transport(), Target(topic="foo"), timeout=30, delivery="at_least_once")
    for name in ("s1", "s2", "s3"):
        client.prepare(server=name).cast({}, "hold", key=name, gate="go")
    for n in range(2000):
        client.cast({}, "work", key=f"k{n}", seconds=0.005)
    meeting.journal.open_gate("go")
    until(lambda: sum(e.server == "s1" for e in meeting.journal.entries("done")) >= 20, "some casts are done")
    servers[0].kill()
    assert 2000 - len(meeting.journal.entries("done")) >= 1000
    wanted = {f"k{n}" for n in range(2000)}
    until(lambda: {entry.key for entry in meeting.journal.entries("done")} >= wanted, "all casts are done", 60)
    runs = Counter(entry.key for entry in meeting.journal.entries("run"))
    assert sum(runs[key] > 1 for key in wanted) <= 64 + 1, "only what the dead server had begun is run again"


def test_restarted_server_is_found_when_it_is_ready(meeting: Meeting) -> None:
    """It is found as soon as it is ready, by those who knew the one before."""
    client = get_rpc_client(meeting.transport(), Target(topic="foo"), timeout=10)
    for _ in range(3):
        (server,) = meeting.serve("s1")
        assert client.call({}, "note", key="x") == "s1"
        assert client.prepare(server="s1").call({}, "note", key="x") == "s1"
        server.kill()


def test_two_servers_of_one_name_are_logged(meeting: Meeting, caplog: pytest.LogCaptureFixture) -> None:
    """Both serve, and the log warns; a file does not know two, so that the second is not found, and says so."""
    first, second, client = Receiver(), Receiver(), meeting.node()
    with caplog.at_level(logging.WARNING):
        first.subscribe(meeting.node("s1"), one("s1"))
        second.subscribe(meeting.node("s2"), one("s1"))
        send(client, one("s1"), "x")
    if isinstance(meeting, FileMeeting):
        assert "does not say that server 's1' of topic 'foo' is at" in caplog.text
        first.wait(1)
        return
    assert "is already served by node" in caplog.text

    def both_serve() -> bool:
        send(client, one("s1"), "x")
        return min(len(first.deliveries), len(second.deliveries)) >= 10

    until(both_serve, "both get their share", 60)


def test_client_whose_connection_broke_gets_its_answer(meeting: Meeting) -> None:
    """The connection breaks while its call runs: it connects again, since the server may be unable to."""
    meeting.serve("s1")
    client = get_rpc_client(meeting.transport(), Target(topic="foo"), timeout=30)
    call = Task(client.call, {}, "hold", key="k", gate="go")
    until(lambda: meeting.journal.entries("run", "k"), "it runs")
    meeting.cut()
    meeting.journal.open_gate("go")
    assert call.result() == "s1"
    assert call.seconds < 15
    assert len(meeting.journal.entries("run", "k")) == 1


def test_call_that_a_stopping_server_passes_on_is_answered(meeting: Meeting) -> None:
    """Also by a server with which the client had nothing to do, and which may be unable to connect with it."""
    (first,) = meeting.serve("s1", executor_thread_pool_size=1, rpc_prefetch=20)
    client = get_rpc_client(meeting.transport(), Target(topic="foo"), timeout=30)
    held = Task(client.call, {}, "hold", key="held", gate="go")
    until(lambda: meeting.journal.entries("run", "held"), "the first is busy")
    calls = [Task(client.call, {}, "note", key=f"k{n}") for n in range(10)]
    until(
        lambda: client.transport.driver.send(ALL, message("{"), mandatory=False).result(15).reached == 1, "it has them"
    )
    meeting.serve("s2")
    stopping = Task(first.stop)
    assert [call.result() for call in calls] == ["s2"] * 10
    meeting.journal.open_gate("go")
    assert held.result() == "s1"
    stopping.result()


def test_frozen_server_loses_no_message_and_is_used_again(meeting: Meeting) -> None:
    """What it had goes to another, and when it goes on it is used again."""
    quick = "&heartbeat=0.5"
    (frozen,) = meeting.serve("s1", more=quick)
    client = get_rpc_client(meeting.transport(more=quick), Target(topic="foo"), timeout=60, delivery="at_least_once")
    held = Task(client.call, {}, "hold", key="k", gate="never")
    until(lambda: meeting.journal.entries("run", "k"), "it runs")
    meeting.serve("s2", more=quick)
    send_signal(frozen.pid, signal.SIGSTOP)
    try:
        until(lambda: len(meeting.journal.entries("run", "k")) == 2, "it runs at the other server")
    finally:
        os.kill(frozen.pid, signal.SIGCONT)
        meeting.journal.open_gate("never")
    assert held.result() in ("s1", "s2")
    until(lambda: client.prepare(server="s1", timeout=20).call({}, "note", key="again") == "s1", "it serves again")


def test_client_whose_connection_broke_is_answered_by_another_server(meeting: Meeting) -> None:
    """Also by a server that learnt of another one meanwhile, and where other hosts cannot know the client."""
    meeting.serve("s1")
    client = get_rpc_client(meeting.transport(), Target(topic="foo", server="s1"), timeout=20)
    assert client.call({}, "note", key="before") == "s1"
    meeting.serve("s2")
    assert client.prepare(server="s2").call({}, "note", key="other") == "s2"
    meeting.cut()
    assert client.prepare(delivery="at_least_once").call({}, "note", key="after") == "s1"


def test_casts_of_a_killed_client_are_run(meeting: Meeting) -> None:
    """Casts that were taken live with their server, even if their sender is killed."""
    meeting.serve("s1", executor_thread_pool_size=1, rpc_prefetch=1)
    client = get_rpc_client(meeting.transport(), Target(topic="foo"), timeout=30)
    client.prepare(server="s1").cast({}, "hold", key="held", gate="go")
    until(lambda: meeting.journal.entries("run", "held"), "the server is busy")
    code = (
        "import sys, os, msgbus; from msgbus.conformance.endpoint import make_conf\n"
        "t = msgbus.get_rpc_transport(make_conf({}), sys.argv[1])\n"
        "c = msgbus.get_rpc_client(t, msgbus.Target(topic='foo'), delivery='at_least_once')\n"
        "for n in range(20): c.cast({}, 'note', key=f'k{n}')\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, meeting.client_url()], check=False, timeout=60)
    meeting.journal.open_gate("go")
    wanted = {f"k{n}" for n in range(20)}
    until(lambda: {entry.key for entry in meeting.journal.entries("run")} >= wanted, "all casts are run", 30)
