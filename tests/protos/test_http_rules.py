"""Every rpc that callers call can be called over HTTP too; no rpc of the trainers can."""

import pytest
from google.api import annotations_pb2
from google.protobuf.descriptor import MethodDescriptor

from tunesmith.trainer.v1 import trainer_service_pb2
from tunesmith.v1 import asset_service_pb2, tune_service_pb2

CALLERS = [
    method
    for file in (tune_service_pb2, asset_service_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


@pytest.mark.parametrize("method", CALLERS, ids=lambda method: method.name)
def test_callers_rpc_has_an_http_rule(method: MethodDescriptor) -> None:
    rule = method.GetOptions().Extensions[annotations_pb2.http]

    pattern = rule.WhichOneof("pattern")

    assert pattern in ("get", "post", "put", "patch", "delete")
    assert getattr(rule, pattern).startswith("/v1/")


def test_no_two_rpcs_share_a_verb_and_a_path() -> None:
    rules = [method.GetOptions().Extensions[annotations_pb2.http] for method in CALLERS]

    taken = [(rule.WhichOneof("pattern"), getattr(rule, rule.WhichOneof("pattern"))) for rule in rules]

    assert len(set(taken)) == len(CALLERS)


def test_the_trainers_stream_has_none() -> None:
    (connect,) = trainer_service_pb2.DESCRIPTOR.services_by_name["TrainerService"].methods

    assert not connect.GetOptions().HasExtension(annotations_pb2.http)
    assert (connect.client_streaming, connect.server_streaming) == (True, True)
