"""A model server that speaks TensorFlow Serving's gRPC and REST APIs: one process, one model.

Run it as ``python -m services.serving.server --config FILE``. It knows nothing of the rest of elearn: its
whole world is the configuration (:mod:`services.serving.server.config`), so it can be run by hand. It and
nothing else in this room imports TensorFlow.
"""
