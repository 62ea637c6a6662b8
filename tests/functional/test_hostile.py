"""As tests/core/test_hostile.py, on real message systems: nothing that a method raises costs a delivery."""

from __future__ import annotations

import pathlib
import threading
import uuid
from typing import Any

import pytest

from msgbus import DeadLetter, MessagingTimeout, Target, get_rpc_client, get_rpc_server, get_rpc_transport
from tests.core.test_hostile import EXCEPTIONS, PREFETCH, Endpoint
from tests.functional.brokers.qpid import Qpid
from tests.functional.brokers.rabbitmq import RabbitMQ
from tests.support import EVENT_TIMEOUT, new_conf


def test_on_rabbitmq(rabbitmq: RabbitMQ) -> None:
    """RabbitMQ: see `check`."""
    check(rabbitmq.url)


def test_on_qpid(qpid: Qpid) -> None:
    """Qpid: see `check`."""
    check(f"{qpid.url}?durable=false")


def test_without_a_broker(tmp_path: pathlib.Path) -> None:
    """ZeroMQ: see `check`."""
    check(f"zmq://?run_dir={tmp_path}")


def check(url: str) -> None:
    """Calls are answered, casts become dead letters, and the server goes on, whatever exceptions and the hook raise."""
    exchange = uuid.uuid4().hex[:8]
    given_up = threading.Semaphore(0)

    def hook(_letter: DeadLetter) -> None:
        given_up.release()
        raise SystemExit("hook")

    serving = get_rpc_transport(new_conf(rpc_prefetch=PREFETCH, rpc_cast_retries=0, control_exchange=exchange), url)
    calling = get_rpc_transport(new_conf(control_exchange=exchange), url)
    server = get_rpc_server(serving, Target(topic="foo", server="h1"), [Endpoint()], on_dead_letter=hook)
    server.start(EVENT_TIMEOUT)
    try:
        client = get_rpc_client(calling, Target(topic="foo"), timeout=EVENT_TIMEOUT)
        policies: list[Any] = ["at_most_once", "at_least_once"]
        for how in EXCEPTIONS:
            for _ in range(PREFETCH + 1):
                client.prepare(delivery="at_least_once").cast({}, "fail", how=how)
            for policy in policies:
                with pytest.raises(Exception) as raised:  # noqa: PT011 - which one differs
                    client.prepare(delivery=policy).call({}, "fail", how=how)
                assert not isinstance(raised.value, MessagingTimeout), how
        for _ in range((PREFETCH + 1) * len(EXCEPTIONS)):
            assert given_up.acquire(timeout=EVENT_TIMEOUT)
        assert client.call({}, "fine") == "fine"
        server.stop()
        assert server.wait(EVENT_TIMEOUT) == 0
    finally:
        calling.cleanup()
        serving.cleanup()
