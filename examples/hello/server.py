"""The service of the example: `msgbus serve server:Hello --topic hello` serves its methods."""

import logging
import os
import time
from collections.abc import Iterator
from typing import Any

import msgbus

LOG = logging.getLogger(__name__)
LOG.setLevel(logging.INFO)  # msgbus serve logs warnings and errors by default


class Hello:
    """A method gets the caller's context first, then its arguments by name."""

    @msgbus.expected_exceptions(ValueError)  # an answer like others: the server does not log it as an error
    def greet(self, ctxt: dict[str, Any], name: str) -> str:
        """The caller gets what it returns or raises."""
        if not name:
            raise ValueError("nobody to greet")
        return f"Hello, {name}! This is process {os.getpid()}."

    def note(self, ctxt: dict[str, Any], text: str) -> None:
        """For casts: nobody waits for an answer."""
        LOG.info("noted: %s", text)

    def count(self, ctxt: dict[str, Any], to: int) -> Iterator[int]:
        """A generator: `multicall` gets each item as soon as it is yielded."""
        yield from range(1, to + 1)

    def brew(self, ctxt: dict[str, Any], seconds: float) -> str:
        """Takes a while. A server that is stopped meanwhile lets it finish."""
        LOG.info("brewing")
        time.sleep(seconds)
        return "tea"

    # What begins with an underscore cannot be called from outside.
    def _secret(self) -> None: ...
