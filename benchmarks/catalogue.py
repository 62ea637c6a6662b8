"""Which rows there are: on which message system, in which workloads, and what they need.

A new way to use msgbus is a module in `benchmarks.peers` and a line here: tables, plots and ratios are made of whatever
rows were measured.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from benchmarks.workloads import WORKLOADS

OURS, OURS_ASYNC, OURS_TYPED = "msgbus", "msgbus-aio", "msgbus-typed"
OUR_ROWS = (OURS, OURS_ASYNC, OURS_TYPED)
ALL = tuple(WORKLOADS)
BLOCKING = tuple(name for name in WORKLOADS if name != "call_tasks")
"""Those that threads can do."""


class Own(NamedTuple):
    """An environment of a library's own.

    Attributes:
        requirements: what pip installs.
        module: what has to be importable there.
        shown: the distributions whose versions matter.
    """

    requirements: tuple[str, ...]
    module: str
    shown: tuple[str, ...]


class Row(NamedTuple):
    """One way to do a workload, on one message system.

    Attributes:
        name: of the library, and how it is used.
        kind: ours; a floor, which is a loop written by hand on a library below msgbus; or a peer, which is another
            library of the same kind.
        peer: where its `benchmarks.base.Peer` is, as ``module:attribute``.
        workloads: those in which it takes part.
        together: client and servers are one process.
        own: the environment that it needs; None is that of the harness.
        shown: the distributions whose versions matter, in the harness's environment.
    """

    name: str
    kind: Literal["ours", "floor", "peer"]
    peer: str
    workloads: tuple[str, ...]
    together: bool = False
    own: Own | None = None
    shown: tuple[str, ...] = ()


_AMQP = ("amqp",)
_KOMBU = ("kombu", "amqp")
_OSLO = Own(("oslo.messaging",), "benchmarks.peers.oslo", ("oslo.messaging", "kombu", "amqp"))
_NAMEKO = Own(("nameko",), "nameko.containers, nameko.standalone.rpc", ("nameko", "kombu", "amqp", "eventlet"))
_FASTSTREAM = Own(("faststream[rabbit]",), "benchmarks.peers.faststream", ("faststream", "aio-pika", "aiormq"))
_AIO_PIKA = Own(("aio-pika",), "benchmarks.peers.aio_pika", ("aio-pika", "aiormq"))
_ZERORPC = Own(("zerorpc",), "benchmarks.peers.zerorpc", ("zerorpc", "pyzmq", "gevent", "msgpack"))
_PYRO5 = Own(("Pyro5",), "benchmarks.peers.pyro5", ("Pyro5", "serpent"))
_RPYC = Own(("rpyc",), "benchmarks.peers.rpyc", ("rpyc",))
_GRPC = Own(("grpcio",), "benchmarks.peers.grpc_sync", ("grpcio",))
_CALLS = ("call_seq", "call_conc")
_TASKS = (*_CALLS, "call_tasks")
_CASTS = ("cast", "cast_many")

SYSTEMS: dict[str, tuple[Row, ...]] = {
    "rabbit": (
        Row(OURS, "ours", "benchmarks.peers.msgbus:PEER", BLOCKING, shown=_KOMBU),
        Row(OURS_ASYNC, "ours", "benchmarks.peers.msgbus_aio:PEER", ALL, shown=_KOMBU),
        Row("pyamqp", "floor", "benchmarks.peers.pyamqp:PLAIN", (*_CALLS, "cast_many", "multicall"), shown=_AMQP),
        Row("pyamqp-windowed", "floor", "benchmarks.peers.pyamqp:WINDOWED", ("call_conc",), shown=_AMQP),
        Row("pyamqp-confirmed", "floor", "benchmarks.peers.pyamqp:CONFIRMED", ("call_seq", "cast"), shown=_AMQP),
        Row("pyamqp-durable", "floor", "benchmarks.peers.pyamqp:DURABLE", ("cast",), shown=_AMQP),
        Row("pyamqp-pipelined", "floor", "benchmarks.peers.pyamqp:PIPELINED", ("cast_many",), shown=_AMQP),
        Row("kombu", "floor", "benchmarks.peers.kombu:PLAIN", ("cast_many", "fanout"), shown=_KOMBU),
        Row("kombu-confirmed", "floor", "benchmarks.peers.kombu:CONFIRMED", ("cast", "fanout"), shown=_KOMBU),
        Row("oslo.messaging", "peer", "benchmarks.peers.oslo:PEER", (*_CALLS, *_CASTS, "fanout"), own=_OSLO),
        Row("nameko", "peer", "benchmarks.peers.nameko:PEER", (*_CALLS, *_CASTS, "fanout"), own=_NAMEKO),
        Row(
            "FastStream",
            "peer",
            "benchmarks.peers.faststream:PEER",
            (*_TASKS, *_CASTS, "fanout"),
            own=_FASTSTREAM,
        ),
        Row("aio-pika", "peer", "benchmarks.peers.aio_pika:PEER", (*_TASKS, *_CASTS, "fanout"), own=_AIO_PIKA),
    ),
    "zmq": (
        Row(OURS, "ours", "benchmarks.peers.msgbus:PEER", BLOCKING, shown=("pyzmq",)),
        Row(OURS_ASYNC, "ours", "benchmarks.peers.msgbus_aio:PEER", ALL, shown=("pyzmq",)),
        Row(OURS_TYPED, "ours", "benchmarks.peers.msgbus:TYPED", _CALLS, shown=("pyzmq",)),
        Row("pyzmq", "floor", "benchmarks.peers.pyzmq:PLAIN", (*_CALLS, "cast_many", "multicall"), shown=("pyzmq",)),
        Row("pyzmq-pubsub", "floor", "benchmarks.peers.pyzmq:FANOUT", ("fanout",), shown=("pyzmq",)),
        Row("zerorpc", "peer", "benchmarks.peers.zerorpc:PEER", (*_CALLS, "cast_many", "multicall"), own=_ZERORPC),
        Row("Pyro5", "peer", "benchmarks.peers.pyro5:PEER", (*_CALLS, *_CASTS, "multicall"), own=_PYRO5),
        Row("rpyc", "peer", "benchmarks.peers.rpyc:PEER", (*_CALLS, "cast_many", "multicall"), own=_RPYC),
        Row("grpcio", "peer", "benchmarks.peers.grpc_sync:PEER", (*_CALLS, "cast_many", "multicall"), own=_GRPC),
        Row("grpcio-aio", "peer", "benchmarks.peers.grpc_aio:PEER", (*_TASKS, "cast_many", "multicall"), own=_GRPC),
    ),
    "qpid": (
        Row(OURS, "ours", "benchmarks.peers.msgbus:PEER", BLOCKING, shown=("python-qpid-proton",)),
        Row(OURS_ASYNC, "ours", "benchmarks.peers.msgbus_aio:PEER", ALL, shown=("python-qpid-proton",)),
        Row("proton", "floor", "benchmarks.peers.proton:PEER", (*_CALLS, *_CASTS), shown=("python-qpid-proton",)),
    ),
    "fake": (
        Row(OURS, "ours", "benchmarks.peers.msgbus:TOGETHER", BLOCKING, together=True),
        Row(OURS_ASYNC, "ours", "benchmarks.peers.msgbus_aio:TOGETHER", ALL, together=True),
        Row("queues", "floor", "benchmarks.peers.queues:PEER", BLOCKING, together=True),
    ),
    "nats": (
        Row(OURS, "ours", "benchmarks.peers.msgbus:PEER", BLOCKING, shown=("nats-py",)),
        Row(OURS_ASYNC, "ours", "benchmarks.peers.msgbus_aio:PEER", ALL, shown=("nats-py",)),
    ),
    "redis": (
        Row(OURS, "ours", "benchmarks.peers.msgbus:PEER", BLOCKING, shown=("redis",)),
        Row(OURS_ASYNC, "ours", "benchmarks.peers.msgbus_aio:PEER", ALL, shown=("redis",)),
    ),
}
"""Message system -> its rows, ours first. Its name is the driver's in a transport URL."""


class Cell(NamedTuple):
    """One thing to measure: a row in a workload, with payloads of one size."""

    system: str
    workload: str
    size: int
    row: Row


def names() -> list[str]:
    """All rows that msgbus is compared with."""
    return list(dict.fromkeys(row.name for rows in SYSTEMS.values() for row in rows if row.kind != "ours"))


def cells(
    systems: tuple[str, ...], workloads: tuple[str, ...], sizes: tuple[int, ...], others: tuple[str, ...] | None
) -> list[Cell]:
    """What is to be measured, in the order of a round: what is compared stands together.

    Args:
        systems: the message systems.
        workloads: the workloads.
        sizes: of payloads, in bytes.
        others: the rows that msgbus is compared with; None means all.
    """
    return [
        Cell(system, workload, size, row)
        for system in systems
        for size in sizes
        for workload in workloads
        for row in SYSTEMS[system]
        if workload in row.workloads and (row.kind == "ours" or others is None or row.name in others)
    ]
