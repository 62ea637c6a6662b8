"""The zmq driver between two hosts, which are network namespaces here, with CURVE."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from msgbus.conformance.waiting import until
from tests.functional.brokers.redis import BrokerMissing, Redis
from tests.functional.namespaces import Namespaces, NoNamespaces
from tests.functional.zmq_faults import hide_sockets
from tests.functional.zmq_keys import Keys

MSGBUS = str(pathlib.Path(sys.executable).parent / "msgbus")
INSECURE = "insecure_let_anybody_send_and_read=true"
SECONDS = 60

SERVICE = """
class Hello:
    def greet(self, ctxt, name):
        return f"Hello, {name}"

    def note(self, ctxt, text):
        print("noted", text, flush=True)

    def count(self, ctxt, to):
        yield from range(1, to + 1)
"""


@pytest.fixture(scope="module")
def hosts() -> Iterator[Namespaces]:
    """Two hosts; where they cannot be made, that is a failure in CI, as a missing broker is."""
    try:
        made = Namespaces()
    except NoNamespaces as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))
    yield made
    made.close()


class Process:
    """A command that goes on, and what it prints."""

    def __init__(self, words: list[str], folder: pathlib.Path) -> None:
        self.process = subprocess.Popen(
            words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
        )
        self.printed = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.printed += line

    def wait_for(self, text: str) -> None:
        """Return when it has printed a text."""
        until(lambda: text in self.printed or self.process.poll() is not None, f"it prints {text!r}", SECONDS)
        assert text in self.printed, self.printed

    def close(self) -> None:
        """Stop it."""
        self.process.terminate()
        self.process.wait(SECONDS)
        self._reader.join(SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()


class Net:
    """Servers on the host `a`, clients on `b`. They find each other in one directory, and meet over TCP alone."""

    def __init__(self, hosts: Namespaces, folder: pathlib.Path) -> None:
        self.keys = Keys(folder / "keys")
        self.keys.add("a", "b", "stranger")
        self.keys.trust("a", "b")
        self.keys.trust("b", "a")
        self.keys.trust("stranger", "a")
        self.hosts, self.folder = hosts, folder
        self._processes: list[Process] = []
        (folder / "hello.py").write_text(SERVICE)

    def url(self, query: str) -> str:
        """A transport URL."""
        return f"zmq://{self.folder}/run?{query}"

    def serve(self, *names: str) -> list[Process]:
        """Start servers, and wait until they are ready."""
        url = self.url(f"listen=tcp://{self.hosts.addresses['a']}:*&{self.keys.query('a')}")
        made = []
        for name in names:
            made.append(self.start("a", "serve", "hello:Hello", "--topic", "hello", "--server", name, "--url", url))
        for server in made:
            server.wait_for("is ready")
        hide_sockets(self.folder / "run")
        return made

    def start(self, host: str, *words: str) -> Process:
        """Start the command msgbus on a host."""
        self._processes.append(Process([*self.hosts.command(host, MSGBUS, *words)], self.folder))
        return self._processes[-1]

    def run(self, query: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the other host."""
        command = self.hosts.command("b", MSGBUS, *words, "--url", self.url(query))
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=SECONDS)

    def client(self, *words: str) -> str:
        """Run a command that is trusted, and return what it prints."""
        done = self.run(self.keys.query("b"), *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def close(self) -> None:
        """Stop all."""
        for process in self._processes:
            process.close()


@pytest.fixture
def net(hosts: Namespaces, tmp_path: pathlib.Path) -> Iterator[Net]:
    """Two hosts with keys."""
    made = Net(hosts, tmp_path)
    yield made
    made.close()


def test_all_verbs_work_between_hosts(net: Net) -> None:
    """Call, cast, fanout and multicall, with CURVE on the way."""
    servers = net.serve("one", "two")
    assert net.client("call", "hello", "greet", "name=Ada") == '"Hello, Ada"\n'
    assert net.client("call", "hello", "greet", "name=Ada", "--server", "two") == '"Hello, Ada"\n'
    assert net.client("multicall", "hello", "count", "to=3") == "1\n2\n3\n"
    net.client("cast", "hello", "note", "text=one-of-you", "--server", "one")
    servers[0].wait_for("noted one-of-you")
    net.client("fanout-cast", "hello", "note", "text=all-of-you")
    for server in servers:
        server.wait_for("noted all-of-you")
    assert "one" in net.client("ping", "hello")


@pytest.mark.parametrize(
    ("who", "why", "log"),
    [
        ("nobody", "this node has no key", ""),
        ("insecure", "handshake failed", "rejected a connection from"),
        (
            "stranger",
            "is not trusted; check that keys_dir",
            "rejected a connection from 10.213.7.2: its key is not in",
        ),
    ],
)
def test_client_that_is_not_trusted_is_rejected(net: Net, who: str, why: str, log: str) -> None:
    """Its calls fail in time with the reason; the server's log names its address; others go on."""
    (server,) = net.serve("one")
    query = {"nobody": "", "insecure": INSECURE}.get(who) if who != "stranger" else net.keys.query("stranger")
    assert query is not None
    done = net.run(query, "call", "hello", "greet", "name=Ada", "--timeout", "3")
    assert done.returncode == 5, done.stderr
    assert why in done.stderr
    assert done.stdout == ""
    if log:
        server.wait_for(log)
    assert net.client("call", "hello", "greet", "name=Ada") == '"Hello, Ada"\n'


def test_removed_key_is_rejected(net: Net) -> None:
    """The next connection with it is refused, and one after it came back is not."""
    net.serve("one")
    assert net.client("call", "hello", "greet", "name=Ada") == '"Hello, Ada"\n'
    net.keys.distrust("a", "b")
    done = net.run(net.keys.query("b"), "call", "hello", "greet", "name=Ada", "--timeout", "2")
    assert done.returncode == 5
    assert "is not trusted" in done.stderr
    net.keys.trust("a", "b")
    assert net.client("call", "hello", "greet", "name=Ada") == '"Hello, Ada"\n'


# With Redis: each host has a run directory of its own, and knows nothing but what Redis says


@pytest.fixture
def redis_net(hosts: Namespaces, tmp_path: pathlib.Path) -> Iterator[tuple[Net, str]]:
    """The hosts, and the URL of a Redis on the host `a`."""
    net = Net(hosts, tmp_path)
    address = hosts.addresses["a"]
    try:
        server = Redis(tmp_path / "redis", password="s3cret", host=address, command=hosts.command("a"))
    except BrokerMissing as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))
    try:
        server.start()
        yield net, f"matchmaker=redis&redis_url={server.url}"
    finally:
        net.close()
        server.close()


def test_redis_and_keys_work_between_hosts(redis_net: tuple[Net, str]) -> None:
    """Two servers on one host are found by a client on the other, over TCP and CURVE; a stranger gets nothing."""
    net, redis = redis_net
    folder, address = net.folder, net.hosts.addresses["a"]
    url = f"zmq://{folder}/run-a?{redis}&listen=tcp://{address}:*&{net.keys.query('a')}"
    servers = [net.start("a", "serve", "hello:Hello", "--topic", "hello", "--server", n, "--url", url) for n in "12"]
    for server in servers:
        server.wait_for("is ready")

    def run(keys: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = net.hosts.command("b", MSGBUS, *words, "--url", f"zmq://{folder}/run-b?{redis}&{keys}")
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=SECONDS, cwd=folder)

    trusted = net.keys.query("b")
    assert run(trusted, "call", "hello", "greet", "name=Ada").stdout == '"Hello, Ada"\n'
    assert run(trusted, "call", "hello", "greet", "name=Ada", "--server", "2").stdout == '"Hello, Ada"\n'
    assert run(trusted, "multicall", "hello", "count", "to=3").stdout == "1\n2\n3\n"
    run(trusted, "fanout-cast", "hello", "note", "text=all-of-you")
    for server in servers:
        server.wait_for("noted all-of-you")
    stranger = run(net.keys.query("stranger"), "call", "hello", "greet", "name=Ada", "--timeout", "3")
    assert stranger.returncode == 5
    assert "is not trusted" in stranger.stderr
    assert "s3cret" not in stranger.stderr
    for server in servers:
        if "rejected a connection" in server.printed:
            break
    else:
        servers[0].wait_for("rejected a connection from")
    servers[0].process.kill()
    for _ in range(2):
        assert run(trusted, "call", "hello", "greet", "name=Ada").stdout == '"Hello, Ada"\n'
