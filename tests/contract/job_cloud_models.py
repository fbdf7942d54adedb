"""SavedModels made by hand: a description and some weights, without TensorFlow."""

from pathlib import Path

from services.registry.save_job.proto import saved_model_pb2


def description(*, tags: tuple[str, ...] = ("serve",), version: str = "2.21.0") -> bytes:
    """A ``saved_model.pb`` with one signature: float32 images of any number to float32 scores."""
    message = saved_model_pb2.SavedModel(saved_model_schema_version=1)
    graph = message.meta_graphs.add()
    graph.meta_info_def.tags.extend(tags)
    graph.meta_info_def.tensorflow_version = version
    signature = graph.signature_def["serving_default"]
    signature.method_name = "tensorflow/serving/predict"
    for infos, name, shape in ((signature.inputs, "image", (-1, 64)), (signature.outputs, "scores", (-1, 10))):
        infos[name].dtype = 1
        for size in shape:
            infos[name].tensor_shape.dim.add(size=size)
    graph.signature_def["__saved_model_init_op"].outputs["op"].tensor_shape.unknown_rank = True
    return message.SerializeToString(deterministic=True)


def write_saved_model(folder: Path, *, weights: bytes = b"weights" * 1000) -> Path:
    """A folder that looks like a SavedModel, an empty folder in it included."""
    (folder / "variables").mkdir(parents=True)
    (folder / "assets").mkdir()
    (folder / "saved_model.pb").write_bytes(description())
    (folder / "variables" / "variables.index").write_bytes(b"index")
    (folder / "variables" / "variables.data-00000-of-00001").write_bytes(weights)
    return folder
