"""How the zmq driver grows with the number of servers on one machine: ``python -m benchmarks.many 1 50 200``.

Starts so many servers of one topic, has a client ask all of them, and says what that costs in memory (the part that is
a process's own), file descriptors and sockets, and when the last of them has answered the client's first ping, and its
next. The first server, which is looked at, has a process of its own; of the others, 25 share one, since it is their
number that counts.
"""

import argparse
import contextlib
import os
import pathlib
import subprocess
import sys
import tempfile

from oslo_config import cfg
from rich.console import Console
from rich.table import Table

from msgbus import Target, Transport, get_rpc_client, get_rpc_server, get_rpc_transport

START_SECONDS = 300.0
"""How long one may take to start or to end, on a machine that has other things to do."""
TOGETHER = 25


def _transport(url: str) -> Transport:
    conf = cfg.ConfigOpts()
    conf([], project="msgbus-benchmarks", default_config_files=[], default_config_dirs=[])
    return get_rpc_transport(conf, url)


class _Echo:
    def echo(self, _ctxt: dict[str, object], value: object) -> object:
        return value


def serve(url: str, *names: str) -> None:
    """Be servers until the input ends, each with a node of its own."""
    targets = [Target(topic="many", server=name) for name in names]
    servers = [get_rpc_server(_transport(url), target, [_Echo()]) for target in targets]
    for server in servers:
        server.start(START_SECONDS)
    print("ready", flush=True)
    sys.stdin.read()
    for server in servers:
        server.wait(10)
        server.transport.cleanup()


def client(url: str, servers: int) -> None:
    """Call and reach all of them, and print what that took: seconds, seconds, own memory, descriptors, sockets."""
    before = _own_memory("self")
    transport = _transport(url)
    calls = get_rpc_client(transport, Target(topic="many"), timeout=60)
    took = []
    for _ in range(2):
        answers = calls.ping(30)
        if len(answers) != servers:
            raise SystemExit(f"{len(answers)} of {servers} servers have answered")
        took.append(max(answer["seconds"] for answer in answers))
    print(*took, _own_memory("self") - before, *_descriptors("self"), flush=True)
    sys.stdin.read()
    transport.cleanup()


def _own_memory(pid: str) -> int:
    """KiB that are this process's alone."""
    lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def _descriptors(pid: str) -> tuple[int, int]:
    """How many a process has, and how many of them are sockets."""
    links = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # It was the listing's own.
            links.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return len(links), sum(link.startswith("socket:") for link in links)


def _start(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.many", *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def measure(count: int) -> list[str]:
    """The row of a table."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"zmq://{folder}/run"
        servers = [_start("serve", url, "s0")]
        for at in range(1, count, TOGETHER):
            servers.append(_start("serve", url, *(f"s{n}" for n in range(at, min(count, at + TOGETHER)))))
        for server in servers:
            assert server.stdout is not None
            if server.stdout.readline() != "ready\n":
                raise SystemExit("a server has ended")
        alone = _own_memory(str(servers[0].pid)), _descriptors(str(servers[0].pid))
        asker = _start("client", url, str(count))
        assert asker.stdout is not None
        first, second, memory, files, sockets = asker.stdout.readline().split()
        memory_after, files_after = _own_memory(str(servers[0].pid)), _descriptors(str(servers[0].pid))
        for process in (asker, *servers):
            assert process.stdin is not None
            process.stdin.close()
        for process in (asker, *servers):
            process.wait(START_SECONDS)
    return [
        str(count),
        f"{float(first) * 1000:,.0f}",
        f"{float(second) * 1000:,.0f}",
        f"{int(memory) / 1024:.1f}",
        f"{files} / {sockets}",
        f"{alone[0] / 1024:.1f}",
        f"{memory_after / 1024:.1f}",
        f"{files_after[0]} / {files_after[1]}",
    ]


def main() -> None:
    """Measure, and show a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many", description=__doc__)
    parser.add_argument("counts", nargs="+", type=int, help="numbers of servers")
    table = Table("servers", "first ping ms", "next ping ms", "client grows by MiB", "its files / sockets")
    for header in ("a server's own MiB", "after the ping", "its files / sockets"):
        table.add_column(header)
    for count in parser.parse_args().counts:
        table.add_row(*measure(count))
    Console().print(table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(*sys.argv[2:])
    elif sys.argv[1:2] == ["client"]:
        client(sys.argv[2], int(sys.argv[3]))
    else:
        main()
