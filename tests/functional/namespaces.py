"""Two hosts on one machine: network namespaces, joined by a cable."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence


class NoNamespaces(Exception):
    """They cannot be made here; the text says why."""


class Namespaces:
    """Hosts `a` and `b`, each with an address of its own. Nothing of them is left after `close`."""

    addresses = {"a": "10.213.7.1", "b": "10.213.7.2"}  # noqa: RUF012  # nobody changes it

    def __init__(self) -> None:
        """Make them.

        Raises:
            NoNamespaces: there is no ip command, or no right to use it.
        """
        if os.geteuid() != 0:
            raise NoNamespaces("network namespaces need root")
        if shutil.which("ip") is None:
            raise NoNamespaces("there is no ip command; tests/functional/brokers/install installs it (iproute2)")
        self._names = {host: f"msgbus-{os.getpid()}-{host}" for host in self.addresses}
        cable = f"mb{os.getpid()}"
        try:
            for name in self._names.values():
                _ip("netns", "add", name)
            _ip("link", "add", f"{cable}a", "netns", self._names["a"], "type", "veth", "peer", f"{cable}b")
            _ip("link", "set", f"{cable}b", "netns", self._names["b"])
            for host, address in self.addresses.items():
                inside = ("-n", self._names[host])
                _ip(*inside, "address", "add", f"{address}/30", "dev", f"{cable}{host}")
                _ip(*inside, "link", "set", f"{cable}{host}", "up")
                _ip(*inside, "link", "set", "lo", "up")
        except NoNamespaces:
            self.close()
            raise

    def command(self, host: str, *words: str) -> Sequence[str]:
        """What runs a command on one of them."""
        return ["ip", "netns", "exec", self._names[host], *words]

    def close(self) -> None:
        """Remove them, and with them the cable."""
        for name in self._names.values():
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], check=False, capture_output=True, text=True)
    if done.returncode:
        raise NoNamespaces(f"ip {' '.join(words)}: {done.stderr.strip()}")
