"""What calling a serving over gRPC can raise."""


class PredictError(Exception):
    """The serving refused or could not be reached.

    Attributes:
        code: gRPC's status code by name, such as ``INVALID_ARGUMENT`` or ``UNAVAILABLE``.
        message: the server's words.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
