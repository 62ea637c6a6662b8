"""Exceptions that clients allow servers to raise at them: this module is on their list, and others are not."""


class OutOfPaper(Exception):
    """A service's own exception."""
