"""A thin client for servings over gRPC, without TensorFlow.

    with PredictClient("127.0.0.1:40123") as client:
        prediction = client.predict("digits", {"pixels": images}, timeout=2)
        prediction.outputs["probabilities"].argmax(axis=1)

It speaks to any server with TensorFlow Serving's API. NumPy is needed to send and to
describe tensors, not to import this package.
"""

from elearn.grpc.client import InputInfo, ModelSignature, PredictClient, Prediction, VersionStatus
from elearn.grpc.errors import PredictError

__all__ = ["InputInfo", "ModelSignature", "PredictClient", "PredictError", "Prediction", "VersionStatus"]
