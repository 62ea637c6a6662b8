"""What the processes of clients and servers have in common: how they begin, and the signals that they obey.

SIGTERM ends one in good order. SIGUSR1 breaks the connections that it has to others over ZeroMQ, for one moment.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import pathlib
import signal
import sys
from collections.abc import Callable

import msgspec

from msgbus import Transport, get_rpc_transport
from msgbus.conformance.endpoint import make_conf
from tests.faults.journal import Writer
from tests.faults.workload import Spec
from tests.functional.zmq_faults import cut_connections

_PR_SET_PDEATHSIG = 1
_ZMQ = "zmq://"
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


AskedToEnd = Callable[[float], bool]
"""Waits so many seconds, and returns whether this client or server has been asked to end."""
Program = Callable[[Spec, Writer, Transport, AskedToEnd], None]
"""A client or a server, which runs until it is asked to end."""


def open_transport(spec: Spec) -> Transport:
    """The transport that a specification asks for."""
    return get_rpc_transport(make_conf(dict(spec.options)), spec.url)


def run(program: Program) -> None:
    """Be what the arguments of this process say, and end with the process that has started this one."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = int(sys.argv[2])
    if os.getppid() != parent:
        raise SystemExit("the process that started this one has ended")
    # They are waited for by the main thread. Threads that are started later inherit this.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    spec = msgspec.json.decode(sys.argv[1], type=Spec)
    journal = Writer(spec.folder, spec.name)
    program(spec, journal, open_transport(spec), functools.partial(_signalled_to_end, spec))


def _signalled_to_end(spec: Spec, seconds: float) -> bool:
    """Wait so long for a signal; return whether one asked this process to end."""
    found = signal.sigtimedwait(SIGNALS, seconds)
    # A process that was frozen past the end of the wait gets a result without a meaning, in Python 3.11 at least.
    if found is None or found.si_signo not in SIGNALS:
        return False
    if found.si_signo == signal.SIGUSR1:
        cut_connections(pathlib.Path(spec.url.removeprefix(_ZMQ)))
    return found.si_signo == signal.SIGTERM
