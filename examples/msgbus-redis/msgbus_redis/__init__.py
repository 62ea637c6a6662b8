"""A driver of msgbus: ``redis://``."""
