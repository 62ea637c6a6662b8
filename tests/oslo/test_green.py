"""The driver in programs whose threads eventlet has replaced, in memory. Each test has a process of its own."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("eventlet") is None, reason="eventlet is not installed")

BEFORE = """
import eventlet
eventlet.monkey_patch()
import logging, os, sys, threading, time
import oslo_messaging
from oslo_config import cfg
cfg.CONF([], default_config_files=[])

class Endpoint:
    def __init__(self):
        self.released = eventlet.event.Event()
    def echo(self, ctxt, value):
        return value
    def wait(self, ctxt):
        return self.released.wait()
    def release(self, ctxt):
        self.released.send("released")

def transport(url="msgbus+fake://green/"):
    return oslo_messaging.get_rpc_transport(cfg.CONF, url)

def serve(made, endpoint):
    server = oslo_messaging.get_rpc_server(made, oslo_messaging.Target(topic="t", server="s"), [endpoint])
    server.start()
    return server

def client(made, **options):
    options.setdefault("timeout", 20)
    return oslo_messaging.get_rpc_client(made, oslo_messaging.Target(topic="t"), **options)
"""


def run(program: str) -> list[str]:
    """What a program prints; also lines of its log, from WARNING on."""
    code = BEFORE + textwrap.dedent(program)
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout.splitlines()


def test_many_green_threads_call_at_the_same_time() -> None:
    """None stops the others: a call that waits for a later one would never end."""
    lines = run("""
        made = transport()
        server = serve(made, Endpoint())
        waiting = eventlet.spawn(client(made).call, {}, "wait")
        pool = eventlet.GreenPool(200)
        answers = list(pool.imap(lambda number: client(made).call({}, "echo", value=number), range(500)))
        client(made).call({}, "release")
        print(waiting.wait(), answers == list(range(500)))
        server.stop()
        server.wait()
        made.cleanup()
    """)
    assert lines == ["released True"]


def test_a_timeout_stops_no_other_green_thread() -> None:
    """A call that times out waits in its own green thread alone."""
    lines = run("""
        made = transport()
        def call():
            try:
                client(made, timeout=0.5).call({}, "echo", value=1)
            except oslo_messaging.MessagingTimeout:
                return "timed out"
        calling = eventlet.spawn(call)
        ticks = 0
        while not calling.dead:
            eventlet.sleep(0.01)
            ticks += 1
        print(calling.wait(), ticks > 5)
        made.cleanup()
    """)
    assert lines == ["timed out True"]


def test_a_green_thread_that_is_killed_leaves_nothing_behind() -> None:
    """Nor does one whose `eventlet.Timeout` ends."""
    lines = run("""
        made = transport()
        serve(made, Endpoint())
        calling = eventlet.spawn(client(made).call, {}, "wait")
        eventlet.sleep(0.1)
        calling.kill()
        try:
            with eventlet.Timeout(0.2):
                client(made).call({}, "wait")
        except eventlet.Timeout:
            print("ended")
        print(len(made._driver.transport.router), client(made).call({}, "echo", value=1))
    """)
    assert lines == ["ended", "0 1"]


def test_notifications_and_requeues() -> None:
    """Listeners run in green threads as well."""
    lines = run("""
        class Reader:
            count = 0
            done = eventlet.event.Event()
            def info(self, ctxt, publisher_id, event_type, payload, metadata):
                self.count += 1
                if self.count < 4:
                    return oslo_messaging.NotificationResult.REQUEUE
                self.done.send(payload)
        made = oslo_messaging.get_notification_transport(cfg.CONF, "msgbus+fake://green/")
        reader = Reader()
        target = oslo_messaging.Target(topic="n")
        listener = oslo_messaging.get_notification_listener(made, [target], [reader], allow_requeue=True)
        listener.start()
        oslo_messaging.Notifier(made, "p", driver="messagingv2", topics=["n"]).info({}, "made", 7)
        print(reader.done.wait(), reader.count)
        listener.stop()
        listener.wait()
        made.cleanup()
    """)
    assert lines == ["7 4"]


def test_the_log_of_native_threads_is_written_by_green_ones() -> None:
    """Handlers have green locks, and may yield, so no native thread may call them."""
    lines = run("""
        from eventlet import patcher
        get_ident = patcher.original("_thread").get_ident
        class Handler(logging.Handler):
            def emit(self, record):
                eventlet.sleep(0.01)
                if "lost" in record.getMessage():
                    print(record.name, record.levelname, get_ident() == main)
        main = get_ident()
        logging.getLogger().addHandler(Handler())
        made = transport()
        import msgbus.oslo.driver
        msgbus.oslo.driver.CAST_PATIENCE = 0.1
        client(made).cast({}, "nothing")
        eventlet.sleep(1)
        made.cleanup()
    """)
    assert lines == ["msgbus.oslo.driver WARNING True"]


def test_ctrl_c_in_the_green_thread_that_serves_the_native_ones() -> None:
    """It ends what the program waits for, as anywhere else, and the program ends in good order."""
    lines = run("""
        class Handler(logging.Handler):
            def emit(self, record):
                if "lost" in record.getMessage():
                    os.kill(os.getpid(), signal.SIGINT)
        import signal
        made = transport()
        server = serve(made, Endpoint())
        import msgbus.oslo.driver
        msgbus.oslo.driver.CAST_PATIENCE = 0.1
        logging.getLogger().addHandler(Handler())
        client(made).prepare(topic="nobody").cast({}, "nothing")
        try:
            eventlet.sleep(60)
        except KeyboardInterrupt:
            print("interrupted")
        print(client(made).call({}, "echo", value=1))
        server.stop()
        server.wait()
        made.cleanup()
    """)
    assert lines == ["interrupted", "1"]


def test_the_rest_of_the_program_keeps_its_green_modules() -> None:
    """Only msgbus and the libraries of its drivers have the original ones."""
    lines = run("""
        import logging as before, concurrent.futures as futures, ssl as secure
        made = transport()
        import logging, concurrent.futures, ssl, select, socket, threading, http.client
        import msgbus.drivers.toolkit.poller as poller
        print(logging is before, concurrent.futures is futures, ssl is secure, hasattr(select, "epoll"))
        print(http.client.socket is socket, poller.threading is threading, hasattr(poller.select, "epoll"))
        made.cleanup()
    """)
    assert lines == ["True True True False", "True False True"]


def test_a_forked_child_calls_and_serves() -> None:
    """With a transport that its parent has made and used; as services with workers do."""
    lines = run("""
        made = transport("msgbus+zmq://?run_dir=" + __import__("tempfile").mkdtemp(prefix="m"))
        server = serve(made, Endpoint())
        print(client(made).call({}, "echo", value="parent"), flush=True)
        child = os.fork()
        if not child:
            eventlet.hubs.use_hub()
            own = oslo_messaging.get_rpc_server(made, oslo_messaging.Target(topic="u", server="s"), [Endpoint()])
            own.start()
            print(client(made).call({}, "echo", value="child to parent"), flush=True)
            print(client(made).prepare(topic="u").call({}, "echo", value="child to itself"), flush=True)
            own.stop()
            own.wait()
            made.cleanup()
            os._exit(0)
        while not os.waitpid(child, os.WNOHANG)[0]:
            eventlet.sleep(0.05)
        print(client(made).call({}, "echo", value="parent again"))
        server.stop()
        server.wait()
        made.cleanup()
    """)
    assert lines == ["parent", "child to parent", "child to itself", "parent again"]


def test_msgbus_that_was_imported_before_says_so() -> None:
    """Then it has the replaced modules, and cannot work."""
    lines = run("""
        import msgbus
        try:
            transport()
        except oslo_messaging.DriverLoadFailure as exc:
            print("eventlet has replaced" in str(exc))
    """)
    assert lines == ["True"]
