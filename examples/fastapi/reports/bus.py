"""What both processes share: the message system, and the errors that travel over it."""

import os
import pathlib

from oslo_config import cfg

from msgbus import aio

TOPIC = "reports"


class NoSuchTemplate(Exception):
    """There is no template of that name."""


def open_transport() -> aio.AsyncTransport:
    """Make the transport, of which each process needs one. Nothing is connected before it is used."""
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[str(pathlib.Path(__file__).with_name("reports.conf"))])
    # The classes of this module are raised in the caller as they are; those of other modules become a RemoteError.
    return aio.get_rpc_transport(conf, os.environ.get("MSGBUS_URL"), allowed_remote_exmods=[__name__])
