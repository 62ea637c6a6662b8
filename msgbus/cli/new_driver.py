"""``msgbus new-driver``."""

from __future__ import annotations

import keyword
import os
import re
from importlib.metadata import entry_points
from importlib.resources import files
from importlib.resources.abc import Traversable

import click

from msgbus.cli.options import example, json_option, log_options
from msgbus.cli.tables import print_json

NAME = re.compile(r"[a-z][a-z0-9]{0,39}")
PLACEHOLDER = "mymq"
"""What the driver of the template is called: it is a driver that works, and is tested as it stands."""

TEXT = """\
Made {directory}:
{files}
It works as it stands, in memory, and passes the suite. Try that first:

  cd {directory}
  pip install -e '.[test]'
  python -m pytest

Then have {package}/driver.py use your message system, one method after the other; the guide "Write a driver" goes
through the steps.
"""


@click.command(epilog=example("msgbus new-driver redisbus", "msgbus new-driver redisbus --directory src/redisbus"))
@click.argument("name")
@click.option(
    "--directory",
    metavar="DIR",
    type=click.Path(),
    help="Where to make it; nothing may be there yet.  [default: msgbus-NAME]",
)
@json_option("The directory and its files, as one line of JSON.")
@log_options
def new_driver(name: str, directory: str | None, as_json: bool) -> None:
    """Begin a driver of your own: a distribution that works and passes the conformance suite, to be changed.

    NAME is what operators will write in front of the :// of their transport URL, in lower-case letters and digits.
    """
    if not NAME.fullmatch(name) or keyword.iskeyword(name):
        raise click.UsageError(f"{name!r} is no name for a driver; use lower-case letters and digits, a letter first")
    taken = {entry_point.name: entry_point for entry_point in entry_points(group="msgbus.drivers")}
    if name in taken:
        raise click.UsageError(f"there is a driver {name} already: {taken[name].value}")
    directory = directory or f"msgbus-{name}"
    if os.path.lexists(directory):
        raise click.UsageError(f"{directory} is there already; give another --directory")
    try:
        written = sorted(_copy(files("msgbus.cli") / "driver_template", directory, name))
    except OSError as exc:
        raise click.UsageError(f"{exc.filename or directory} cannot be written: {exc.strerror}") from exc
    if as_json:
        print_json([{"name": name, "directory": directory, "files": written}])
        return
    listed = "".join(f"  {os.path.relpath(path, directory)}\n" for path in written)
    click.echo(TEXT.format(directory=directory, files=listed, package=f"msgbus_{name}"), nl=False)


def _copy(source: Traversable, target: str, name: str) -> list[str]:
    """Copy a folder of the template, with the driver's name in names and texts; returns the files' paths."""
    os.makedirs(target)
    written = []
    for entry in source.iterdir():
        path = os.path.join(target, _named(entry.name, name))
        if entry.name == "__pycache__":  # of a checkout whose tests have run
            continue
        if entry.is_dir():
            written += _copy(entry, path, name)
        else:
            with open(path, "w", encoding="utf-8") as file:
                file.write(_named(entry.read_text(encoding="utf-8"), name))
            written.append(path)
    return written


def _named(text: str, name: str) -> str:
    return text.replace(PLACEHOLDER, name).replace(PLACEHOLDER.capitalize(), name.capitalize())
