"""Exports the toy model that serving tests use: ``python tests/support/toy_model.py FOLDER VERSION...``.

A program of its own, so that no test process has to load TensorFlow.
"""

import sys
from pathlib import Path

import tensorflow as tf


class Toy(tf.Module):
    """A handful of signatures, each for one thing that a server has to get right."""

    def __init__(self, version: int) -> None:
        super().__init__()
        self.offset = tf.Variable(float(version))
        self.table = tf.Variable([10.0, 20.0, 30.0])

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, name="x")])
    def plain(self, x):
        """Half plus the version, row by row."""
        return {"y": x * 0.5 + self.offset}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 2], tf.float32, name="a"),
            tf.TensorSpec([None], tf.int64, name="b"),
        ]
    )
    def pair(self, a, b):
        """Two inputs and two outputs."""
        return {"total": tf.reduce_sum(a, 1) + tf.cast(b, tf.float32), "twice": b * 2}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def text(self, text):
        """Strings, and bytes that are none."""
        return {"joined": tf.strings.join([text, "!"]), "raw_bytes": tf.strings.join([text, b"\xff"])}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, name="index")])
    def look_up(self, index):
        """Fails for an index beyond the table."""
        return {"value": tf.gather(self.table, index)}

    @tf.function(input_signature=[tf.TensorSpec([3], tf.float32, name="x")])
    def fixed(self, x):
        """Has no rows: must not be batched."""
        return {"total": tf.reduce_sum(x)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def mean(self, x):
        """Mixes its rows: its output promises none, so it must not be batched either."""
        return {"mean": tf.reduce_mean(x)}

    @tf.function(input_signature=[tf.TensorSpec([], tf.int32, name="turns")])
    def spin(self, turns):
        """Takes its time."""
        return {"turns": tf.while_loop(lambda i: i < turns, lambda i: (i + 1,), (tf.constant(0),))[0]}


def export(folder: Path, version: int) -> None:
    toy = Toy(version)
    tf.saved_model.save(
        toy,
        str(folder / str(version)),
        signatures={
            "serving_default": toy.plain,
            "pair": toy.pair,
            "text": toy.text,
            "look_up": toy.look_up,
            "fixed": toy.fixed,
            "mean": toy.mean,
            "spin": toy.spin,
        },
    )


if __name__ == "__main__":
    for number in sys.argv[2:]:
        export(Path(sys.argv[1]), int(number))
