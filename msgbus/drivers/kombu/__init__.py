"""The driver ``kombu`` (also ``rabbit``, ``amqp``): RabbitMQ. Importing it imports no library of RabbitMQ."""

from msgbus.drivers.kombu.driver import KombuDriver

__all__ = ["KombuDriver"]
