"""What a client of the model server is told, in the codes of gRPC and as TensorFlow Serving chooses them.

ServeError
├── InvalidArgument     an input that does not fit the signature
├── NotFound            no such model, version or signature
├── FailedPrecondition  the server is not set up for it
├── Exhausted           the queue is full: come back later, or add replicas
├── Unimplemented       a part of the API that this server does not have
├── Unavailable         shutting down
└── ModelError          the model itself failed; carries TensorFlow's own code
"""

from enum import Enum
from typing import ClassVar


class Code(Enum):
    """A gRPC status code, its number, and the HTTP status that TensorFlow Serving's REST API gives it."""

    CANCELLED = (1, 499)
    UNKNOWN = (2, 500)
    INVALID_ARGUMENT = (3, 400)
    DEADLINE_EXCEEDED = (4, 504)
    NOT_FOUND = (5, 404)
    ALREADY_EXISTS = (6, 409)
    PERMISSION_DENIED = (7, 403)
    RESOURCE_EXHAUSTED = (8, 429)
    FAILED_PRECONDITION = (9, 400)
    ABORTED = (10, 409)
    OUT_OF_RANGE = (11, 400)
    UNIMPLEMENTED = (12, 501)
    INTERNAL = (13, 500)
    UNAVAILABLE = (14, 503)
    DATA_LOSS = (15, 500)
    UNAUTHENTICATED = (16, 401)

    @property
    def number(self) -> int:
        return self.value[0]

    @property
    def http(self) -> int:
        return self.value[1]

    @classmethod
    def of(cls, number: int) -> "Code":
        """The code of a number; UNKNOWN for one that there is not."""
        return next((code for code in cls if code.number == number), cls.UNKNOWN)


class ServeError(Exception):
    """Told to the client as it is: one line."""

    default: ClassVar[Code] = Code.INTERNAL

    def __init__(self, message: str, code: Code | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default


class InvalidArgument(ServeError):
    default = Code.INVALID_ARGUMENT


class NotFound(ServeError):
    default = Code.NOT_FOUND


class FailedPrecondition(ServeError):
    default = Code.FAILED_PRECONDITION


class Exhausted(ServeError):
    default = Code.RESOURCE_EXHAUSTED


class Unimplemented(ServeError):
    default = Code.UNIMPLEMENTED


class Unavailable(ServeError):
    default = Code.UNAVAILABLE


class ModelError(ServeError):
    """Raised by TensorFlow while loading or running the model."""
