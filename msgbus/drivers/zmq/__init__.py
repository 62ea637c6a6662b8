"""The driver ``zmq``: ZeroMQ, without a broker. Importing it does not import pyzmq."""

from msgbus.drivers.zmq.driver import ZmqDriver

__all__ = ["ZmqDriver"]
