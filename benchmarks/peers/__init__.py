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
}

WORKLOADS = {
    "call_seq": ("msgbus", "pyamqp"),
    "call_conc": ("msgbus", "pyamqp", "pyamqp-windowed"),
    "cast": ("msgbus", "kombu", "kombu-confirmed", "pyamqp", "pyamqp-confirmed"),
}


def load(name: str) -> Peer:
    """The peer of that name. Only now is its library imported."""
    peer = resolve_name(_PEERS[name])
    assert isinstance(peer, Peer)
    return peer
