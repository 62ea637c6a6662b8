"""Programs that fork, end without clean-up, or drop their transports: in memory, and over ZeroMQ.

tests/functional/test_lives.py has the same over brokers.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import pytest

from tests import lives

ALONE = [program for program in lives.FORKS if program is not lives.children_of_multiprocessing_call]


@pytest.fixture
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A directory with a short name: a Unix socket has a path of at most 107 bytes."""
    return tmp_path_factory.mktemp("t")


@pytest.mark.parametrize("program", ALONE, ids=lambda program: program.__name__)
def test_forks_in_memory(program: Callable[[str], None]) -> None:
    """See the program's text."""
    lives.run(program, "fake://lives/")


@pytest.mark.parametrize("program", lives.FORKS, ids=lambda program: program.__name__)
def test_forks_over_zmq(program: Callable[[str], None], run_dir: pathlib.Path) -> None:
    """See the program's text."""
    lives.run(program, f"zmq://?run_dir={run_dir}")


def test_programs_end_without_cleanup(run_dir: pathlib.Path) -> None:
    """Their servers have nothing to warn of, and nothing to wait for when they stop."""
    lives.run(lives.ends_without_cleanup, f"zmq://?run_dir={run_dir}")


def test_a_program_ends_while_a_thread_waits() -> None:
    """The end of a program does not wait for an answer that nobody can give, and prints nothing."""
    lives.run(lives.wait_for_nobody, "rabbit://guest:guest@127.0.0.1:1/")


def test_dropped_transports_in_memory() -> None:
    """They are collected with their threads."""
    lives.run(lives.dropped_transports_are_collected, "fake://lives/")


def test_dropped_transports_over_zmq(run_dir: pathlib.Path) -> None:
    """They are collected with their threads and descriptors."""
    lives.run(lives.dropped_transports_are_collected, f"zmq://?run_dir={run_dir}")
