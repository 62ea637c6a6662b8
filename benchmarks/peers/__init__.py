"""The peers, one module for each library, and which of them take part in which workload."""

from collections.abc import Mapping
from pkgutil import resolve_name
from urllib.parse import urlsplit

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
    "proton": "benchmarks.peers.proton:PEER",
}

WORKLOADS = ("call_seq", "call_conc", "cast", "fanout")

Workloads = Mapping[str, tuple[str, ...]]
"""Workload -> the peers that take part."""

_RABBITMQ = {
    "call_seq": ("msgbus", "pyamqp"),
    "call_conc": ("msgbus", "pyamqp", "pyamqp-windowed"),
    "cast": ("msgbus", "kombu", "kombu-confirmed", "pyamqp", "pyamqp-confirmed"),
    "fanout": ("msgbus",),
}
_BY_SCHEME: dict[str, Workloads] = {
    "qpid": {**dict.fromkeys(WORKLOADS, ("msgbus", "proton")), "fanout": ("msgbus",)},
    "zmq": {**dict.fromkeys(WORKLOADS, ("msgbus", "pyzmq")), "fanout": ("msgbus", "pyzmq-pubsub")},
}


def workloads(url: str) -> Workloads:
    """Who can take part on the message system of a transport URL."""
    return _BY_SCHEME.get(urlsplit(url).scheme, _RABBITMQ)


def load(name: str) -> Peer:
    """The peer of that name. Only now is its library imported."""
    peer = resolve_name(_PEERS[name])
    assert isinstance(peer, Peer)
    return peer
