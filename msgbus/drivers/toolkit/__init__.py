"""What drivers share. For a broker, that is all of a driver but the broker's protocol.

* `broker`: `BrokerDriver`, the driver of a broker with the protocol left out. It rests on the next four, and a driver
  meets of them what it has to write or to call: `session` (`Session`, `Line`), `consuming` (`Feed`, `Source`,
  `Outcome`), `sending` (`Outgoing`, `Offer`) and `connecting` (`peer_of`).
* `loop`: the transport's one thread for I/O, timers, and what other threads want done.
* `futures`: futures that more than one side may finish.
* `tls`: the options of a driver that has TLS.
* `descriptors`: what to say when there are no file descriptors left.

Use `broker` for a system with servers that one connects to, that take messages and hand them to consumers. A system
without a broker (peers that connect to each other, a bus in shared memory) has no connection that is up or away, and
does by itself what a broker does: it implements `msgbus.drivers.base.Driver`, and uses `loop`, `futures`, and, where it
has something to connect to, `connecting`.

The names that a driver of another distribution may use are in `msgbus.drivers.base.PUBLIC`.
"""
