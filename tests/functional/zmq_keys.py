"""Keys for the tests of the zmq driver: each name is a host with a key file, and a directory of those it trusts."""

from __future__ import annotations

import pathlib
import shutil

from msgbus.cli.zmq_keys import make_keys


class Keys:
    """Hosts in a folder."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder

    def add(self, *names: str) -> None:
        """Make hosts that trust nobody."""
        for name in names:
            self.trusted(name).mkdir(parents=True)
            make_keys(str(self._folder / name), name, force=False)

    def trusted(self, name: str) -> pathlib.Path:
        """The directory of the keys that a host trusts."""
        return self._folder / name / "trusted"

    def file(self, name: str) -> pathlib.Path:
        """The key file of a host."""
        return self._folder / name / f"{name}.key_secret"

    def public(self, name: str) -> str:
        """Its public key."""
        return (self._folder / name / f"{name}.key").read_text().rpartition('public-key = "')[2].partition('"')[0]

    def trust(self, name: str, *others: str) -> None:
        """Have a host trust others."""
        for other in others:
            shutil.copy(self._folder / other / f"{other}.key", self.trusted(name))

    def distrust(self, name: str, other: str) -> None:
        """Have a host trust another no more."""
        (self.trusted(name) / f"{other}.key").unlink()

    def query(self, name: str) -> str:
        """The options of a host, for a transport URL."""
        return f"key_file={self.file(name)}&keys_dir={self.trusted(name)}"
