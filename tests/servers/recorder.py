"""A gRPC server that carries out nothing: it keeps the last request, and answers what it was told to. It shows how an
HTTP request was transcoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from gateway.http.profile import entry_of, is_map, is_synthetic


class Recorder:
    """Serves every rpc of the services on a free port of loopback."""

    def __init__(self, services: Sequence[ServiceDescriptor]) -> None:
        self.asked: tuple[str, Message] | None = None
        """Name and request of the last rpc."""
        self.answers: list[Message] = []
        """What the next rpc answers; one that is no stream, with the first."""
        self._server = grpc.server(ThreadPoolExecutor(1))
        for service in services:
            handlers = {method.name: self._handler(method) for method in service.methods}
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.stop(0).wait()

    def _handler(self, method: MethodDescriptor) -> grpc.RpcMethodHandler[Any, Any]:
        def one(request: Message, context: object) -> Message:
            self.asked = method.name, request
            return self.answers[0]

        def many(request: Message, context: object) -> Iterator[Message]:
            self.asked = method.name, request
            yield from self.answers

        serializers: Any = {
            "request_deserializer": GetMessageClass(method.input_type).FromString,
            "response_serializer": GetMessageClass(method.output_type).SerializeToString,
        }
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(many, **serializers)
        return grpc.unary_unary_rpc_method_handler(one, **serializers)


def filled(descriptor: Descriptor, arm: int = 0) -> Any:
    """A message with every field set, each to a value that is no default. Of a oneof the arm of that number is set,
    counted round and round.
    """
    message: Any = GetMessageClass(descriptor)()
    if descriptor.full_name == "google.protobuf.Timestamp":
        message.seconds, message.nanos = 1_767_323_045, 500_000_000
        return message
    if descriptor.full_name == "google.protobuf.Struct":
        message.update({"reason": "TRUNCATED", "at": 512, "more": [True, None, {"x": 0.5}]})
        return message
    chosen = [oneof.fields[arm % len(oneof.fields)] for oneof in descriptor.oneofs if not is_synthetic(oneof)]
    for field in descriptor.fields:
        oneof = field.containing_oneof
        if oneof is None or is_synthetic(oneof) or field in chosen:
            _fill(message, field, arm)
    return message


def _fill(message: Any, field: FieldDescriptor, arm: int) -> None:
    if is_map(field):
        key, value = entry_of(field)
        getattr(message, field.name).update({_scalar(key, n): _scalar(value, n) for n in range(2)})
    elif field.is_repeated and field.message_type is not None:
        getattr(message, field.name).extend([filled(field.message_type, arm) for _ in range(2)])
    elif field.is_repeated:
        getattr(message, field.name).extend([_scalar(field, n) for n in range(2)])
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(filled(field.message_type, arm))
        getattr(message, field.name).SetInParent()
    else:
        setattr(message, field.name, _scalar(field, arm))


def _scalar(field: FieldDescriptor, n: int) -> Any:
    if field.enum_type is not None:
        known = [value.number for value in field.enum_type.values if value.number]
        return known[n % len(known)]
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return True
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        # A colon, a space, an escape and a letter of two bytes, as names have them.
        return f"{field.name}: {n} +%é"
    if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return 0.5 + n
    if field.type == FieldDescriptor.TYPE_INT64:
        return 2**53 + 1 + n  # no double holds it
    return 7 + n
