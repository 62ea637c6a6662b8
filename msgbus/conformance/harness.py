"""Harness: what the suite has to know of a message system, and can have done to it."""

from __future__ import annotations


class Harness:
    """Subclass it, set `url`, and override what your message system can do. One that is not overridden is not used.

    Attributes:
        url: the transport URL. The suite may send what it likes there: no service of yours should use it.
        processes: several processes can share the message system. Without it the suite's servers run as threads of
            the test's process, and nothing is checked that has to do with killing one.
        largest: bytes of the largest message that it takes with this URL.
    """

    url: str
    processes: bool = True
    largest: int = 16 * 1024 * 1024

    def stop(self) -> None:
        """Stop the message system, and return when it is gone. It keeps its address and what it stores durably."""
        raise NotImplementedError

    def start(self) -> None:
        """Start it again, and return when it serves."""
        raise NotImplementedError

    def kill(self) -> None:
        """End it as a failing machine would, and return when it is gone."""
        raise NotImplementedError

    def cut(self) -> None:
        """Break every connection to it at once. New ones are accepted as before."""
        raise NotImplementedError

    def pause(self) -> None:
        """Have it answer nothing any more, while its connections stay open: as a machine that hangs."""
        raise NotImplementedError

    def resume(self) -> None:
        """End the pause."""
        raise NotImplementedError

    def partition(self) -> None:
        """Break every connection to it, and let no new one through, while it runs on."""
        raise NotImplementedError

    def heal(self) -> None:
        """End the partition."""
        raise NotImplementedError

    def leftovers(self) -> set[str]:
        """What exists at present and should not outlive its owner: connections, inboxes, queues of fanouts.

        The suite compares it before and after each check.
        """
        return set()

    def close(self) -> None:
        """Let go of what the harness itself has started. For ``msgbus conformance``, which calls it at the end."""

    def can(self, *names: str) -> bool:
        """Whether the methods of these names are overridden."""
        return all(getattr(type(self), name) is not getattr(Harness, name) for name in names)
