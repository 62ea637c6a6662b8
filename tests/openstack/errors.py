"""Exceptions that clients allow servers to raise at them: this module is on their list, and others are not."""


class OutOfPaper(Exception):
    """A service's own exception, with an argument."""

    def __init__(self, printer: str) -> None:
        super().__init__(f"{printer} is out of paper")
        self.printer = printer
