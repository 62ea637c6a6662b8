"""A mistake that a test makes on purpose."""

from __future__ import annotations

from typing import Any

from msgbus.drivers.registry import load_driver_class


def waste(amount: int) -> None:
    """Run about three instructions for each unit."""
    for _ in range(amount):
        pass


def add_to_each_message(driver: str, amount: int) -> None:
    """Have each message that this process sends cost one call more."""
    cls: Any = load_driver_class(driver)
    send = cls.send

    def send_and_waste(self: Any, *args: Any, **kwargs: Any) -> Any:
        waste(amount)
        return send(self, *args, **kwargs)

    cls.send = send_and_waste
