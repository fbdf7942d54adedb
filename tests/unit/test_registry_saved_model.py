"""Reading a SavedModel's description without TensorFlow."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from services.registry.save_job.errors import CannotSaveError
from services.registry.save_job.proto import saved_model_pb2
from services.registry.save_job.saved_model import describe
from tests.contract.job_cloud_models import description

PROTO = "services/registry/save_job/proto/saved_model.proto"
TOP = Path(__file__).parents[2]


def test_the_graph_for_serving_is_described() -> None:
    training = saved_model_pb2.SavedModel.FromString(description(tags=("train",), version="1.0"))
    message = saved_model_pb2.SavedModel.FromString(description())
    message.meta_graphs.insert(0, training.meta_graphs[0])
    found = describe(message.SerializeToString())
    assert found.framework == "tensorflow 2.21.0"
    assert [signature.name for signature in found.signatures] == ["serving_default"]
    assert found.signatures[0].method == "tensorflow/serving/predict"
    assert found.signatures[0].outputs[0].shape == (-1, 10)


def test_shapes_and_types() -> None:
    message = saved_model_pb2.SavedModel.FromString(description())
    inputs = message.meta_graphs[0].signature_def["serving_default"].inputs
    inputs["any"].tensor_shape.unknown_rank = True
    inputs["any"].dtype = 7
    inputs["scalar"].dtype = 9999
    found = {each.name: each for each in describe(message.SerializeToString()).signatures[0].inputs}
    assert (found["any"].shape, found["any"].dtype) == (None, "string")
    assert (found["scalar"].shape, found["scalar"].dtype) == ((), "dtype 9999")


def test_too_many_signatures_are_counted_not_listed() -> None:
    message = saved_model_pb2.SavedModel.FromString(description())
    for number in range(2000):
        message.meta_graphs[0].signature_def[f"signature-{number}"].inputs["x"].dtype = 1
    found = describe(message.SerializeToString())
    assert found.signatures == ()
    assert found.note == "its 2001 signatures are too long to be listed"


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xff", b"<html>", description()[:-7], saved_model_pb2.SavedModel().SerializeToString()]
)
def test_what_is_not_one(content: bytes) -> None:
    with pytest.raises(CannotSaveError):
        describe(content)


def test_the_generated_code_is_the_protos(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I.", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", PROTO],
        cwd=TOP,
        check=True,
    )
    for suffix in ("_pb2.py", "_pb2.pyi"):
        name = PROTO.removesuffix(".proto") + suffix
        assert (tmp_path / name).read_text() == (TOP / name).read_text()


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="TensorFlow is not installed")
def test_field_numbers_are_tensorflows() -> None:
    """Compared with the descriptors that TensorFlow ships, in a process that loads only those of it."""
    program = """
import importlib.util, sys, types
tensorflow = types.ModuleType("tensorflow")
tensorflow.__path__ = list(importlib.util.find_spec("tensorflow").submodule_search_locations)
sys.modules["tensorflow"] = tensorflow
from services.registry.save_job.proto import saved_model_pb2 as ours
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2
from tensorflow.core.framework import tensor_shape_pb2
for mine, theirs in (
    (ours.SavedModel, saved_model_pb2.SavedModel),
    (ours.MetaGraph, meta_graph_pb2.MetaGraphDef),
    (ours.MetaGraph.MetaInfo, meta_graph_pb2.MetaGraphDef.MetaInfoDef),
    (ours.Signature, meta_graph_pb2.SignatureDef),
    (ours.TensorInfo, meta_graph_pb2.TensorInfo),
    (ours.TensorShape, tensor_shape_pb2.TensorShapeProto),
    (ours.TensorShape.Dimension, tensor_shape_pb2.TensorShapeProto.Dim),
):
    for field in mine.DESCRIPTOR.fields:
        other = theirs.DESCRIPTOR.fields_by_name[field.name]
        assert field.number == other.number, (mine, field.name)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=TOP, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
