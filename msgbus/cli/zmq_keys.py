"""``msgbus zmq-keys``."""

from __future__ import annotations

import os
import re
import socket
import stat
import tempfile

import click

from msgbus.cli.options import example, json_option, log_options
from msgbus.cli.tables import print_json

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

TEXT = """\
secret key: {secret_key_file}
  Keep it on this host. Only its owner may read it: the user that runs the services.
public key: {public_key_file}
  Copy it, over a channel that you trust, into the keys_dir of each host that has to communicate with this one:
  scp {public_key_file} HOST:{keys_dir}/

In the configuration of this host (with its own address instead of 10.0.0.5):

[msgbus_zmq]
listen = tcp://10.0.0.5:*
key_file = {secret_key_file}
keys_dir = {keys_dir}
"""


@click.command(epilog=example("msgbus zmq-keys /etc/msgbus/keys --name node1"))
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False))
@click.option("--name", metavar="NAME", help="The name of this host's key.  [default: the host name]")
@click.option(
    "--force",
    is_flag=True,
    help=("Overwrite the keys of that name. Hosts with the old public key can no longer connect."),
)
@json_option("The paths and the public key, as one line of JSON.")
@log_options
def zmq_keys(folder: str, name: str | None, force: bool, as_json: bool) -> None:
    """Make a pair of keys (CURVE) in DIR, so that this host can communicate with others over ZeroMQ.

    NAME.key_secret is for the option key_file, NAME.key for the other hosts. DIR is created if it does not exist; it
    can be the keys_dir of this host as well.
    """
    name = socket.gethostname() if name is None else name
    if not NAME.fullmatch(name):
        raise click.UsageError(f"{name!r} cannot be a key's name: use letters, digits, dots, dashes and underscores")
    folder = os.path.abspath(folder)
    try:
        _prepare(folder)
        public, secret, key = make_keys(folder, name, force=force)
    except FileExistsError as exc:
        raise click.UsageError(f"{exc.filename2 or exc.filename} exists already; --force overwrites it") from None
    except OSError as exc:
        raise click.UsageError(f"keys cannot be made in {folder}: {exc.strerror}") from exc
    found = {"name": name, "secret_key_file": secret, "public_key_file": public, "keys_dir": folder, "public_key": key}
    if as_json:
        print_json([found])
    else:
        click.echo(TEXT.format(**found), nl=False)


def _prepare(folder: str) -> None:
    """Make the directory; if it exists, check that nobody else can write to it."""
    if not os.path.isdir(folder):
        try:
            os.makedirs(os.path.dirname(folder), exist_ok=True)
            os.mkdir(folder, 0o700)
        except FileExistsError as exc:
            raise click.UsageError(f"{exc.filename} exists and is not a directory") from None
    mode = stat.S_IMODE(os.stat(folder).st_mode)
    if mode & 0o022:
        raise click.UsageError(f"others may write to {folder} (mode {mode:o}); make it private: chmod 700")


def make_keys(folder: str, name: str, *, force: bool) -> tuple[str, str, str]:
    """Make NAME.key and NAME.key_secret: both, or neither.

    Returns:
        their paths, and the public key.

    Raises:
        FileExistsError: one of them exists, and `force` is False.
        OSError: they cannot be written.
        DriverLoadFailure: pyzmq is missing.
    """
    from msgbus.drivers.base import import_library

    auth = import_library("zmq.auth", "zmq")
    public, secret = os.path.join(folder, f"{name}.key"), os.path.join(folder, f"{name}.key_secret")
    # pyzmq overwrites files, and the umask decides who can read them: so it writes into a private directory.
    with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as aside:
        made_public, made_secret = auth.create_certificates(aside, name)
        os.chmod(made_public, 0o644)
        os.chmod(made_secret, 0o600)
        key = auth.load_certificate(made_public)[0].decode("ascii")
        if force:
            os.replace(made_secret, secret)
            os.replace(made_public, public)
            return public, secret, key
        os.link(made_secret, secret)  # which fails if the file exists; rename would overwrite it
        try:
            os.link(made_public, public)
        except OSError:
            os.unlink(secret)
            raise
    return public, secret, key
