"""A verb of a service: its subject, what it takes and what it answers."""

from typing import Any, Generic, TypeVar

import msgspec

Q = TypeVar("Q", bound=msgspec.Struct)
R = TypeVar("R", bound=msgspec.Struct)


class Verb(Generic[Q, R]):
    """One request/reply operation of a service, as both sides know it.

    Args:
        service: the room that answers.
        name: the verb, unique in the room.
        request, reply: the structs that travel, as msgpack.
    """

    def __init__(self, service: str, name: str, request: type[Q], reply: type[R]) -> None:
        self.service = service
        self.name = name
        self.request = request
        self.reply = reply
        self.encoder = msgspec.msgpack.Encoder()
        self.request_decoder: msgspec.msgpack.Decoder[Q] = msgspec.msgpack.Decoder(request)
        self.reply_decoder: msgspec.msgpack.Decoder[R] = msgspec.msgpack.Decoder(reply)

    @property
    def subject(self) -> str:
        """Where requests go."""
        return f"elearn.rpc.{self.service}.{self.name}"

    def __repr__(self) -> str:
        return f"Verb({self.subject})"


AnyVerb = Verb[Any, Any]
