"""Contract: what a driver does while the message system hangs for longer than most libraries wait."""

from __future__ import annotations

import time
from collections import Counter

from msgbus import MessagingException, TransportUnavailable
from msgbus.conformance.bus import Bus
from msgbus.conformance.check import check
from msgbus.conformance.checks.receiver import Receiver, another_driver, message, send
from msgbus.conformance.waiting import until

PAUSE = 8.0
"""Seconds: longer than the time-out after which most libraries reconnect and repeat what got no answer."""
QUIET = 3.0
"""Seconds without a delivery, after which no late repeat of a library is expected any more."""


class PausingChecks:
    """Of drivers while the message system hangs. Nothing else may use it meanwhile."""

    @check(
        "driver",
        since="0.1",
        harness=("pause", "resume"),
        builds_on=(
            "test_a_message_without_an_answer_may_be_delivered",
            "test_a_first_delivery_is_not_marked_as_redelivered",
        ),
    )
    def test_slow_a_pause_repeats_nothing(self, bus: Bus) -> None:
        """A driver does not repeat a message that gets no answer for 8 s: none arrives twice unmarked.

        What failed as not delivered does not come; what failed with ``maybe_delivered`` may come once.
        """
        receiver = Receiver()
        receiver.subscribe(another_driver(bus), bus.address())
        sender = another_driver(bus)
        send(sender, bus.address(), "before")
        bus.harness.pause()
        try:
            end = time.monotonic() + PAUSE
            # Some of them fail during the pause, and most do not.
            sent = {
                str(n): sender.send(bus.address(), message(str(n), wait=1.5 if n % 4 == 3 else 60.0), mandatory=True)
                for n in range(20)
            }
            until(lambda: time.monotonic() > end, "the end of the pause", PAUSE + 10)
        finally:
            bus.harness.resume()
        errors = {body: future.exception(70) for body, future in sent.items()}
        foreign = {body: error for body, error in errors.items() if not isinstance(error, MessagingException | None)}
        assert not foreign, f"errors that are not of msgbus: {foreign}"
        _send_until_one_comes(bus, receiver)
        receiver.wait_for_all(body for body, error in errors.items() if error is None)
        _wait_for_quiet(receiver)
        times = Counter(delivery.message.body.decode() for delivery in receiver.deliveries if not delivery.redelivered)
        twice = {body: count for body, count in times.items() if count > 1}
        assert not twice, (
            f"sent once during a pause of {PAUSE:g} s, and delivered several times without the mark redelivered: "
            f"{twice} (message: times). The library repeats what has no answer: switch off its retries, its reconnect "
            "and its offline buffer"
        )
        surely_not = {
            body
            for body, error in errors.items()
            if error is not None and not (isinstance(error, TransportUnavailable) and error.maybe_delivered)
        }
        came = sorted(surely_not & set(receiver.bodies))
        assert not came, (
            f"messages {came} came, though their sends failed as surely not delivered, the first with "
            f"{errors[came[0]]!r}: set maybe_delivered as soon as the library may have a byte"
        )


def _send_until_one_comes(bus: Bus, receiver: Receiver) -> None:
    """Return when connections work again, including those that replace the ones ended by the pause."""
    end = time.monotonic() + 40
    number = 0
    while not any(body.startswith("after") for body in receiver.bodies):
        assert time.monotonic() < end, f"nothing comes to {bus.address()} after a pause"
        number += 1
        error = bus.driver.send(bus.address(), message(f"after {number}"), mandatory=False).exception(30)
        assert isinstance(error, MessagingException | None), f"it ended with {error!r}"
        try:
            receiver.wait_for(f"after {number}", 2)
        except AssertionError:
            continue


def _wait_for_quiet(receiver: Receiver) -> None:
    """Return when nothing has arrived for some seconds."""
    last = [len(receiver.deliveries), time.monotonic()]

    def quiet() -> bool:
        if len(receiver.deliveries) != last[0]:
            last[:] = [len(receiver.deliveries), time.monotonic()]
        return time.monotonic() - last[1] > QUIET

    until(quiet, f"{QUIET:g} s without a delivery", 60)
