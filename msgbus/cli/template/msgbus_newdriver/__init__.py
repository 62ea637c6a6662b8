"""A driver of msgbus: ``newdriver://``."""
