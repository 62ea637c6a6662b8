"""The zmq driver where file descriptors run out, in processes with a low limit: nothing aborts, and it comes back."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from msgbus import Target, get_rpc_client, get_rpc_transport
from msgbus.conformance.endpoint import ServerSpec, make_conf
from msgbus.conformance.processes import ProcessServer
from msgbus.conformance.waiting import Task, until

CLIENT = """
import os, resource, sys
from msgbus import Target, TransportUnavailable, get_rpc_client, get_rpc_transport
from msgbus.conformance.endpoint import make_conf

def client():
    return get_rpc_client(get_rpc_transport(make_conf({}), sys.argv[1]), Target(topic="foo"), timeout=5)

def in_use():
    return len(os.listdir("/proc/self/fd")) - 1

old, late = client(), client()
assert old.call({}, "echo", value=1) == 1
limit = in_use() + 60
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
held = []
while in_use() < limit - int(sys.argv[2]):
    held.append(os.open("/dev/null", os.O_RDONLY))
for verb in (late.call, late.cast):
    try:
        verb({}, "echo", value=2)
    except TransportUnavailable as exc:
        assert "ulimit -n" in str(exc), exc
    else:
        raise SystemExit("it could begin")
assert old.call({}, "echo", value=3) == 3, "what is connected goes on"
for fd in held:
    os.close(fd)
assert late.call({}, "echo", value=4) == 4, "it comes back by itself"
for made in (old, late):
    made.transport.cleanup()
print("all is well")
"""

SERVER = """
import os, resource, sys
from msgbus import Target, get_rpc_server, get_rpc_transport
from msgbus.conformance.endpoint import make_conf

class Endpoint:
    def echo(self, _ctxt, value=None):
        return value

    def count(self, _ctxt):
        return len(os.listdir("/proc/self/fd")) - 1

server = get_rpc_server(get_rpc_transport(make_conf({}), sys.argv[1]), Target(topic="foo", server="s1"), [Endpoint()])
server.start(30)
limit = len(os.listdir("/proc/self/fd")) - 1 + 150
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
print(limit, flush=True)
sys.stdin.read()
server.stop()
server.wait(10)
server.transport.cleanup()
"""


@pytest.fixture
def run_dir(tmp_path: pathlib.Path) -> str:
    """A run directory."""
    return str(tmp_path / "run")


@pytest.fixture
def server(run_dir: str, tmp_path: pathlib.Path) -> Iterator[ProcessServer]:
    """A server of the conformance suite, with no limit of its own."""
    made = ProcessServer(ServerSpec(f"zmq://{run_dir}", "foo", "s1", str(tmp_path)))
    made.ready()
    yield made
    made.close()


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("left", [1, 2, 3, 5, 8, 12, 20, 30])
def test_node_is_not_started_without_descriptors(run_dir: str, left: int) -> None:
    """However many are left: the error says what to do, connections go on, and later it works without a restart."""
    command = [sys.executable, "-c", CLIENT, f"zmq://{run_dir}", str(left)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "all is well\n"


def test_server_survives_too_many_connections(run_dir: str) -> None:
    """It accepts no new connections, and says so; existing ones go on; afterwards new ones are accepted again."""
    command = [sys.executable, "-c", SERVER, f"zmq://{run_dir}"]
    transports = []
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        limit = int(process.stdout.readline())
        transports.append(get_rpc_transport(make_conf({}), f"zmq://{run_dir}"))
        client = get_rpc_client(transports[0], Target(topic="foo"), timeout=30)
        (path,) = pathlib.Path(run_dir).glob("*.sock")
        assert client.call({}, "echo", value=1) == 1
        connected = []
        try:
            for _ in range(400):
                one = socket.socket(socket.AF_UNIX)
                connected.append(one)
                one.settimeout(5)
                try:
                    one.connect(str(path))
                except OSError:
                    break  # nobody listens there any more
                assert client.call({}, "count") < limit
            assert len(connected) < limit
            assert client.call({}, "echo", value=2) == 2
        finally:
            for one in connected:
                one.close()
        transports.append(get_rpc_transport(make_conf({}), f"zmq://{run_dir}"))
        late = Task(get_rpc_client(transports[1], Target(topic="foo"), timeout=60).call, {}, "echo", value=3)
        assert late.result(60) == 3
        until(lambda: os.path.exists(path), "the socket is there again")
        process.stdin.close()
        said = process.stderr.read()
        assert process.wait(30) == 0, said
    for transport in transports:
        transport.cleanup()
    assert "accepts no new connections" in said
    assert "ulimit -n" in said
