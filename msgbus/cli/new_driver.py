"""``msgbus new-driver``."""

from __future__ import annotations

import os
import pathlib
import re
from importlib.metadata import entry_points

import click

from msgbus.cli.options import example, json_option, log_options
from msgbus.cli.tables import print_json

TEMPLATE = pathlib.Path(__file__).parent / "template"
"""A driver that works, named ``newdriver``. Only its name is replaced."""
NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
LONGEST = 40

TEXT = """\
{folder} has a working driver, for one process:
{files}
Run the checks:
  cd {folder}
  pip install -e '.[test]'
  pytest

Then change it step by step, as its first lines say:
  {module}
"""


@click.command(epilog=example("msgbus new-driver carrier_pigeon"))
@click.argument("name", metavar="NAME")
@click.argument("folder", metavar="[DIR]", type=click.Path(file_okay=False), required=False)
@json_option("The name, the directory and the files, as one line of JSON.")
@log_options
def new_driver(name: str, folder: str | None, as_json: bool) -> None:
    """Write a driver for the URL NAME://, with its tests, as a separate distribution, into DIR.

    NAME consists of small letters, digits and underscores. DIR is msgbus-NAME by default; it is created if it does
    not exist, and has to be empty.
    """
    _check_name(name)
    where = pathlib.Path(os.path.abspath(folder or f"msgbus-{name.replace('_', '-')}"))
    try:
        if where.is_dir() and any(where.iterdir()):
            raise click.UsageError(f"{where} exists and is not empty; nothing was written")
        files = write(name, where)
    except OSError as exc:
        raise click.UsageError(f"the driver cannot be written to {where}: {exc.strerror}") from exc
    if as_json:
        print_json([{"name": name, "folder": str(where), "files": files}])
    else:
        shown = "".join(f"  {file}\n" for file in files)
        module = where / f"msgbus_{name}" / "driver.py"
        click.echo(TEXT.format(folder=where, files=shown, module=module), nl=False)


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name) or len(name) > LONGEST:
        raise click.UsageError(
            f"{name!r} cannot be a driver's name: use small letters and digits, with single underscores between, "
            f"a letter first, and at most {LONGEST} characters"
        )
    if name in entry_points(group="msgbus.drivers").names:
        raise click.UsageError(f"there is already a driver {name!r}; see: msgbus drivers")


def write(name: str, folder: pathlib.Path) -> list[str]:
    """Write the template's files, with the new driver's name in place of the template's.

    Returns:
        their paths within the folder.

    Raises:
        OSError: they cannot be written, for example because one of them exists.
    """
    title = "".join(part.capitalize() for part in name.split("_"))
    written = []
    for source in sorted(path for path in TEMPLATE.rglob("*") if path.is_file() and path.suffix != ".pyc"):
        path = str(source.relative_to(TEMPLATE)).replace("newdriver", name)
        text = source.read_text(encoding="utf-8")
        text = text.replace("msgbus-newdriver", f"msgbus-{name.replace('_', '-')}")
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "x", encoding="utf-8") as file:
            file.write(text.replace("newdriver", name).replace("Newdriver", title))
        written.append(path)
    return written
