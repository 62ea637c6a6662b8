"""A driver of msgbus for NATS with JetStream: ``nats://host:4222/``."""
