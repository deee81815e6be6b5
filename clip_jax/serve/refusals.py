"""What a request is answered that can't be done."""


class Refusal(Exception):
    """A request is refused.

    Attributes:
        status: the status of HTTP.
        message: what is wrong, what was expected, and what to do.
    """

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.message = status, message


def bad(message: str) -> Refusal:
    """Returns the refusal of a request that is wrong in itself."""
    return Refusal(400, message)
