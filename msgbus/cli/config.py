"""``msgbus config``."""

from __future__ import annotations

import io
import json
from typing import Any

import click

from msgbus.cli.options import example, json_option, log_options

NAMESPACE = "msgbus"
"""Our entry point in the group oslo.config.opts: all options of msgbus and of the installed drivers."""
WIDTH = 110
"""Characters of a line of help."""


@click.command(epilog=example("msgbus config --output-file msgbus.conf", "msgbus ping hello --config-file msgbus.conf"))
@click.option("--output-file", metavar="PATH", type=click.Path(dir_okay=False), help="Write the sample to this file.")
@click.option("--force", is_flag=True, help="Overwrite the file.")
@json_option("One line of JSON for each option.")
@log_options
def config(output_file: str | None, force: bool, as_json: bool) -> None:
    """Print a sample of the configuration file: each option of msgbus and of its drivers, as a comment.

    Each option is shown with its default. To change one, remove the # in front of it.
    """
    text = _options_as_json() if as_json else _generate("ini")
    if output_file is None:
        click.echo(text, nl=False)
        return
    try:
        with open(output_file, "w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise click.UsageError(f"{output_file} exists already; --force overwrites it") from None
    except OSError as exc:
        raise click.UsageError(f"{output_file} cannot be written: {exc.strerror}") from exc


def _generate(form: str) -> str:
    """What oslo-config-generator writes."""
    from oslo_config import cfg, generator

    conf = cfg.ConfigOpts()
    generator.register_cli_opts(conf)
    args = ["--namespace", NAMESPACE, "--wrap-width", str(WIDTH), "--format", form]
    conf(args, project="msgbus", prog="msgbus", default_config_files=[], default_config_dirs=[])
    written = io.StringIO()
    generator.generate(conf, written)
    return written.getvalue()


def _options_as_json() -> str:
    groups = json.loads(_generate("json"))["options"]
    rows = [_row(name, option) for name, group in groups.items() for option in group["opts"]]
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def _row(group: str, option: dict[str, Any]) -> dict[str, Any]:
    names = ("name", "type", "default", "min", "max", "help", "secret")
    choices = [value for value, _description in option["choices"]]
    return {
        "group": group,
        **{name: option[name] for name in names},
        "choices": choices,
        "old_names": option["deprecated_opts"],
    }
