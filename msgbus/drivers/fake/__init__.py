"""The driver ``fake``: a message system inside one process, for tests.

It keeps every promise of the contract that needs no second process, and tests can make it misbehave through `get_bus`:

>>> bus = get_bus("fake://somewhere/")
>>> bus.fail_next(TransportBlocked("full"))    # the next send fails
>>> bus.lose_next()                            # the next message is taken and never delivered
>>> bus.delay = 0.5                            # deliver half a second late
>>> bus.cut()                                  # break all connections; they come back at once
>>> bus.stop(); bus.start()                    # the message system is away in between
>>> bus.pause(); bus.resume()                  # it hangs in between: what is sent has no answer

Transports of one process whose URLs are equal up to the question mark share a bus; others share nothing. What a bus
stores is gone when the last of its transports is closed: a later one finds it empty.
"""

from msgbus.drivers.fake.bus import Bus, get_bus
from msgbus.drivers.fake.driver import FakeDriver

__all__ = ["Bus", "FakeDriver", "get_bus"]
