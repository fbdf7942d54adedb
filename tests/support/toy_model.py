"""Exports the toy model that serving tests use: ``python tests/support/toy_model.py FOLDER VERSION...``.

A program of its own, so that no test process has to load TensorFlow.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import tensorflow as tf

F = TypeVar("F", bound=Callable[..., dict[str, tf.Tensor]])


def signature(*inputs: tf.TensorSpec) -> Callable[[F], F]:
    """``tf.function``, which comes without types and would take those of what it decorates."""
    decorated: Callable[[F], F] = tf.function(input_signature=inputs)
    return decorated


class Toy(tf.Module):  # type: ignore[misc]  # comes without types
    """A handful of signatures, each for one thing that a server has to get right."""

    def __init__(self, version: int) -> None:
        super().__init__()
        self.offset = tf.Variable(float(version))
        self.table = tf.Variable([10.0, 20.0, 30.0])

    @signature(tf.TensorSpec([None, 2], tf.float32, name="x"))
    def plain(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        """Half plus the version, row by row."""
        return {"y": x * 0.5 + self.offset}

    @signature(tf.TensorSpec([None, 2], tf.float32, name="a"), tf.TensorSpec([None], tf.int64, name="b"))
    def pair(self, a: tf.Tensor, b: tf.Tensor) -> dict[str, tf.Tensor]:
        """Two inputs and two outputs."""
        return {"total": tf.reduce_sum(a, 1) + tf.cast(b, tf.float32), "twice": b * 2}

    @signature(tf.TensorSpec([None], tf.string, name="text"))
    def text(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """Strings, and bytes that are none."""
        return {"joined": tf.strings.join([text, "!"]), "raw_bytes": tf.strings.join([text, b"\xff"])}

    @signature(tf.TensorSpec([None], tf.int32, name="index"))
    def look_up(self, index: tf.Tensor) -> dict[str, tf.Tensor]:
        """Fails for an index beyond the table."""
        return {"value": tf.gather(self.table, index)}

    @signature(tf.TensorSpec([3], tf.float32, name="x"))
    def fixed(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        """Has no rows: must not be batched."""
        return {"total": tf.reduce_sum(x)}

    @signature(tf.TensorSpec([None], tf.float32, name="x"))
    def mean(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        """Mixes its rows: its output promises none, so it must not be batched either."""
        return {"mean": tf.reduce_mean(x)}

    @signature(tf.TensorSpec([], tf.int32, name="turns"))
    def spin(self, turns: tf.Tensor) -> dict[str, tf.Tensor]:
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
