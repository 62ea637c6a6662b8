"""The driver ``qpid``: Apache Qpid Broker-J over AMQP 1.0. Importing it does not import Proton."""

from msgbus.drivers.qpid.driver import QpidDriver

__all__ = ["QpidDriver"]
