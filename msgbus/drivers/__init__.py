"""Drivers: each moves bytes between addresses on one message system. `msgbus.drivers.base` is their contract."""
