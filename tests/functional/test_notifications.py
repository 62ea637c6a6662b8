"""What a message system does with notifications that nobody reads, and how a listener outlives what happens to it."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys

import pytest

import msgbus
from tests.functional.brokers.rabbitmq import RabbitMQ
from tests.notify.support import Endpoint, listening
from tests.support import EVENT_TIMEOUT, new_conf

MSGBUS = str(pathlib.Path(sys.executable).with_name("msgbus"))


def test_rabbitmq_keeps_unread_notifications_in_a_queue(rabbitmq: RabbitMQ) -> None:
    """The sender makes the queue of the level, durable; a restart of RabbitMQ loses nothing of it."""
    transport = msgbus.get_notification_transport(new_conf(), rabbitmq.url)
    notifier = msgbus.Notifier(transport, driver="messagingv2", topics=["unread"])
    for n in range(3):
        notifier.error({}, f"e{n}", {})
    kept = rabbitmq.queues()["msgbus/unread.error"]
    assert (kept["messages"], kept["durable"], kept["consumers"]) == (3, True, 0)
    rabbitmq.restart()
    endpoint = Endpoint()
    with listening(transport, endpoint, targets=[msgbus.Target(topic="unread")]):
        assert sorted(endpoint.events(3)) == ["e0", "e1", "e2"]
    transport.cleanup()


def test_a_listener_comes_back_after_a_restart_of_rabbitmq(rabbitmq: RabbitMQ) -> None:
    """And gets what was sent meanwhile."""
    transport = msgbus.get_notification_transport(new_conf(), rabbitmq.url)
    notifier = msgbus.Notifier(transport, driver="messagingv2", topics=["back"])
    endpoint = Endpoint()
    with listening(transport, endpoint, targets=[msgbus.Target(topic="back")]):
        notifier.info({}, "before", {})
        assert endpoint.events(1) == ["before"]
        rabbitmq.restart()
        notifier.info({}, "after", {})
        assert endpoint.events(1) == ["after"]
    transport.cleanup()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_msgbus_listen(rabbitmq: RabbitMQ, number: signal.Signals) -> None:
    """With 0, after what it has printed; what it has not read stays."""
    env = {**os.environ, "MSGBUS_URL": rabbitmq.url}
    listen = [MSGBUS, "listen", f"signal-{number}"]
    with subprocess.Popen(listen, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        assert process.stderr.readline().startswith("msgbus listen is ready")
        subprocess.run([MSGBUS, "notify", f"signal-{number}", "order.created", "[1]"], env=env, check=True, timeout=60)
        assert process.stdout.readline() == "info order.created from nobody: [1]\n"
        process.send_signal(number)
        assert process.wait(EVENT_TIMEOUT) == 0


def test_nobody_reads_the_output_of_msgbus_listen(rabbitmq: RabbitMQ) -> None:
    """It ends with 141, as any command, and the notification that was not printed stays for others."""
    env = {**os.environ, "MSGBUS_URL": rabbitmq.url}
    listen = [MSGBUS, "listen", "closed"]
    with subprocess.Popen(listen, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        assert process.stderr.readline().startswith("msgbus listen is ready")
        process.stdout.close()
        subprocess.run([MSGBUS, "notify", "closed", "e", "1"], env=env, check=True, timeout=60)
        assert process.wait(EVENT_TIMEOUT) == 141
    printed = subprocess.run(
        [MSGBUS, "listen", "closed", "--count", "1"], env=env, check=True, timeout=60, capture_output=True, text=True
    )
    assert printed.stdout == "info e from nobody: 1\n"
