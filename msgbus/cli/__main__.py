"""``python -m msgbus.cli`` is the command `msgbus`."""

from msgbus.cli import main

main()
