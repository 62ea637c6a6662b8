"""The peers, one module for each library, and which of them take part in which workload."""

from pkgutil import resolve_name

from benchmarks.base import Peer

_PEERS = {
    "msgbus": "benchmarks.peers.msgbus:PEER",
    "pyamqp": "benchmarks.peers.pyamqp:PLAIN",
    "pyamqp-windowed": "benchmarks.peers.pyamqp:WINDOWED",
    "pyamqp-confirmed": "benchmarks.peers.pyamqp:CONFIRMED",
    "kombu": "benchmarks.peers.kombu:PLAIN",
    "kombu-confirmed": "benchmarks.peers.kombu:CONFIRMED",
    "pyzmq": "benchmarks.peers.pyzmq:PLAIN",
    "pyzmq-pubsub": "benchmarks.peers.pyzmq:FANOUT",
}

WORKLOADS = {
    "call_seq": ("msgbus", "pyamqp", "pyzmq"),
    "call_conc": ("msgbus", "pyamqp", "pyamqp-windowed", "pyzmq"),
    "cast": ("msgbus", "kombu", "kombu-confirmed", "pyamqp", "pyamqp-confirmed", "pyzmq"),
    "fanout": ("msgbus", "pyzmq-pubsub"),
}

_ZMQ = ("msgbus", "pyzmq", "pyzmq-pubsub")


def taking_part(workload: str, url: str) -> tuple[str, ...]:
    """The peers of a workload that use the message system of a transport URL."""
    is_zmq = url.startswith("zmq:")
    return tuple(name for name in WORKLOADS[workload] if name == "msgbus" or (name in _ZMQ) == is_zmq)


def load(name: str) -> Peer:
    """The peer of that name. Only now is its library imported."""
    peer = resolve_name(_PEERS[name])
    assert isinstance(peer, Peer)
    return peer
