"""What drivers share: for a broker, all of a driver except the broker's protocol.

* `broker`: `BrokerDriver`, the driver of a broker without its protocol. It uses four more modules, of which a driver
  needs only these names: `session` (`Session`, `Line`), `consuming` (`Feed`, `Source`, `Outcome`), `sending`
  (`Outgoing`, `Offer`) and `connecting` (`peer_of`).
* `loop`: the transport's one thread, for I/O, timers, and calls from other threads.
* `futures`: futures that more than one side may finish.
* `tls`: the options of a driver that has TLS.
* `descriptors`: error texts for when there are no file descriptors left.

Use `broker` for a system with servers that accept connections, take messages and deliver them to consumers. A system
without a broker (peers that connect to each other, a bus in shared memory) has no single connection that is up or down,
and does a broker's work itself: it implements `msgbus.drivers.base.Driver`, and uses `loop`, `futures`, and
`connecting` if it connects to anything.

The names that a driver of another distribution may use are in `msgbus.drivers.base.PUBLIC`.
"""
