"""With ``topology=oslo`` a stock oslo.messaging and msgbus call each other. The stock peer is the real one."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from oslo_config import cfg

import msgbus
from tests.functional.brokers.processes import poll
from tests.functional.brokers.rabbitmq import RabbitMQ

PEER = Path(__file__).with_name("stock_peer.py")


@contextmanager
def transport_to(broker: RabbitMQ) -> Iterator[msgbus.Transport]:
    """A transport that names things as a stock peer does."""
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[])
    transport = msgbus.get_rpc_transport(conf, f"{broker.url}?topology=oslo")
    try:
        yield transport
    finally:
        transport.cleanup()


def lines(journal: Path) -> list[str]:
    """What was noted so far."""
    return sorted(journal.read_text().splitlines()) if journal.exists() else []


def test_our_client_calls_and_casts_to_a_stock_server(rabbitmq: RabbitMQ, tmp_path: Path) -> None:
    """Values, context, exceptions, unknown methods, casts and fanouts reach a stock server and come back from it."""
    journal = tmp_path / "journal"
    command = [sys.executable, "-W", "ignore", str(PEER), "server", rabbitmq.url, "stock-server", str(journal)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:
        assert peer.stdout is not None
        assert peer.stdout.readline() == "ready\n"
        with transport_to(rabbitmq) as transport:
            target = msgbus.Target(topic="stock-server", version="1.2")
            client = msgbus.get_rpc_client(transport, target, timeout=20)
            expected = {"value": {"a": [1, "ü", None]}, "user": "u"}
            assert client.call({"user": "u"}, "echo", value={"a": [1, "ü", None]}) == expected
            assert client.prepare(server="stock").call({"user": "u"}, "echo", value=2) == {"value": 2, "user": "u"}
            assert list(client.multicall({"user": "u"}, "echo", value=3)) == [{"value": 3, "user": "u"}]
            with pytest.raises(ValueError, match="no such thing"):
                client.call({}, "fail")
            odd = [float("nan"), float("inf"), float("-inf"), "\ud800", 10**30]
            assert repr(client.call({}, "odd")) == repr(odd)
            with pytest.raises(msgbus.SerializationError, match=r"'value' .* JSON has no number"):
                client.call({}, "count", value=float("inf"))
            with pytest.raises(ValueError, match="invalid literal for int"):
                client.call({}, "count", value="x")
            with pytest.raises(msgbus.RemoteError) as caught:
                client.call({}, "missing")
            assert caught.value.exc_type == "NoSuchMethod"
            client.cast({}, "note", text="cast")
            client.fanout_cast({}, "note", text="fanout")
            client.prepare(server="stock").cast({}, "note", text="cast to server")
            poll(lambda: len(lines(journal)) == 3, 20, "three casts at the stock server")
            assert lines(journal) == ["cast", "cast to server", "fanout"]
        peer.communicate(timeout=30)


def test_a_stock_client_calls_and_casts_to_our_server(rabbitmq: RabbitMQ, tmp_path: Path) -> None:
    """The other way round, with call monitoring: our server answers, fails and shows life as a stock one does."""
    journal = tmp_path / "journal"

    class Endpoint:
        target = msgbus.Target(version="1.3")

        def echo(self, ctxt: dict[str, Any], value: Any) -> Any:
            return {"value": value, "user": ctxt.get("user")}

        def fail(self, _ctxt: dict[str, Any]) -> None:
            raise ValueError("no such thing")

        def kind(self, _ctxt: dict[str, Any], value: Any) -> str:
            return repr(value)

        def rich(self, _ctxt: dict[str, Any]) -> None:
            error = ExceptionGroup("several", [ValueError(b"\xff")])
            error.add_note("a note")
            raise error

        def slow(self, _ctxt: dict[str, Any], seconds: float) -> str:
            time.sleep(seconds)
            return "done"

        def note(self, _ctxt: dict[str, Any], text: str) -> None:
            with journal.open("a") as file:
                file.write(f"{text}\n")

    with transport_to(rabbitmq) as transport:
        server = msgbus.get_rpc_server(transport, msgbus.Target(topic="our-server", server="ours"), [Endpoint()])
        server.start()
        command = [sys.executable, "-W", "ignore", str(PEER), "client", rabbitmq.url, "our-server"]
        peer = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
        assert peer.returncode == 0, peer.stderr
        assert json.loads(peer.stdout) == {
            "call": {"value": {"a": [1, "ü", None]}, "user": "u"},
            "to server": {"value": 2, "user": "u"},
            "error": "no such thing",
            "missing": "NoSuchMethod",
            "odd": "inf",
            "odd result": "SerializationError",
            "rich": ["ExceptionGroup", "several (1 sub-exception)"],
            "monitored": "done",
        }
        poll(lambda: len(lines(journal)) == 3, 20, "three casts at our server")
        assert lines(journal) == ["cast", "cast to server", "fanout"]
        server.stop()
        assert server.wait(10) == 0
