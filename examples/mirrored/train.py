"""Learn handwritten digits with MultiWorkerMirroredStrategy: each worker holds the model, all step together.

    python train.py --data DIR --out DIR        by hand, one process
    elearn training submit training.yaml        a chief and workers: elearn sets TF_CONFIG for every process

Every process runs this same loop. When one of them is lost, no step can be completed, and the others end with
an error; started again, all go on from the newest checkpoint. DIR of --out, which each must see, gets

    checkpoints/   the last three, written by the chief, read by all
    logs/          for TensorBoard
    export/        the model as a SavedModel: pixels [None, 64] -> digit [None], probabilities [None, 10]
"""

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with digits.npz (see ../digits/prepare.py)")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, logs and export")
    parser.add_argument("--epochs", type=int, default=25, help="passes over the training data (25)")
    parser.add_argument("--batch", type=int, default=64, help="digits a step, all workers together (64)")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="of Adam (0.003)")
    parser.add_argument("--checkpoint-every", type=int, default=5, metavar="EPOCHS", help="(5)")
    parser.add_argument("--threads", type=int, default=1, help="of one operation; the model is small (1)")
    return parser.parse_args()


def build_model() -> Any:
    return tf.keras.Sequential(
        [
            tf.keras.Input((64,), name="pixels"),
            tf.keras.layers.Rescaling(1 / 16),
            tf.keras.layers.Dense(128, activation="relu"),
            tf.keras.layers.Dense(10),
        ]
    )


def export(model: Any, folder: Path) -> None:
    """Write the SavedModel whole or not at all."""

    def predict(pixels: Any) -> dict[str, Any]:
        logits = model(pixels, training=False)
        return {"digit": tf.argmax(logits, axis=-1), "probabilities": tf.nn.softmax(logits)}

    unfinished = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    archive = tf.keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", predict, [tf.TensorSpec([None, 64], tf.float32, name="pixels")])
    archive.write_out(str(unfinished), verbose=False)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def train(args: argparse.Namespace, is_chief: bool, scratch: Path) -> None:
    strategy = tf.distribute.MultiWorkerMirroredStrategy()  # waits for the others
    with np.load(args.data / "digits.npz") as data:
        x_train, y_train, x_test, y_test = (data[name] for name in ("x_train", "y_train", "x_test", "y_test"))

    with strategy.scope():
        model = build_model()
        optimizer = tf.keras.optimizers.Adam(args.learning_rate)
        optimizer.build(model.trainable_variables)
        epoch = tf.Variable(0, dtype=tf.int64)
    plain = build_model()  # a copy that knows of no cluster: to measure and to export

    replicas = strategy.num_replicas_in_sync
    digits_a_step = max(1, args.batch // replicas) * replicas  # the same share for each

    def batches(context: Any) -> Any:
        rows = tf.data.Dataset.from_tensor_slices((x_train, y_train))
        rows = rows.shard(context.num_input_pipelines, context.input_pipeline_id).shuffle(len(x_train)).repeat()
        return rows.batch(context.get_per_replica_batch_size(digits_a_step)).prefetch(2)

    def step(pixels: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            logits = model(pixels, training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            # The gradients of all replicas are summed up, so each divides by the digits of all of them.
            loss = tf.reduce_sum(losses) / digits_a_step
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        right = tf.reduce_sum(tf.cast(tf.argmax(logits, axis=-1) == labels, tf.float32)) / digits_a_step
        return tf.stack([loss, right])

    def steps(batch: Any, count: Any) -> Any:
        """Mean loss and accuracy of `count` steps."""
        total = tf.zeros([2])
        for _ in tf.range(count):
            total += strategy.reduce("SUM", strategy.run(step, args=next(batch)), axis=None)
        return total / tf.cast(count, tf.float32)

    several_steps = tf.function(steps)
    batch = iter(strategy.distribute_datasets_from_function(batches))

    # Saving is a step that all take part in, but only the chief's files are of use.
    shared = args.out / "checkpoints"
    checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer, epoch=epoch)
    checkpoints = tf.train.CheckpointManager(checkpoint, str(shared if is_chief else scratch), max_to_keep=3)
    newest = tf.train.latest_checkpoint(str(shared))
    if newest:
        checkpoint.restore(newest).assert_consumed()
        print(f"going on from {newest}, epoch {epoch.numpy()}", flush=True)
    board = tf.summary.create_file_writer(str((args.out if is_chief else scratch) / "logs"))

    steps_an_epoch = math.ceil(len(x_train) / digits_a_step)
    for now in range(int(epoch.numpy()) + 1, args.epochs + 1):
        loss, accuracy = several_steps(batch, tf.constant(steps_an_epoch)).numpy()
        plain.set_weights(model.get_weights())
        held_out = float(np.mean(np.argmax(plain(x_test), axis=-1) == y_test))
        where = f"epoch {now}/{args.epochs} step {now * steps_an_epoch}"
        print(f"{where} loss {loss:.4f} accuracy {accuracy:.4f} held-out {held_out:.4f}", flush=True)
        with board.as_default(step=now * steps_an_epoch):
            tf.summary.scalar("loss", loss)
            tf.summary.scalar("accuracy", accuracy)
            tf.summary.scalar("held_out_accuracy", held_out)
        board.flush()
        if now % args.checkpoint_every == 0 or now == args.epochs:
            epoch.assign(now)
            checkpoints.save(checkpoint_number=now)

    if is_chief:
        plain.set_weights(model.get_weights())
        held_out = float(np.mean(np.argmax(plain(x_test), axis=-1) == y_test))
        export(plain, args.out / "export")
        print(f"exported to {args.out / 'export'}: held-out accuracy {held_out:.4f}", flush=True)


def main() -> None:
    args = arguments()
    tf_config = json.loads(os.environ.get("TF_CONFIG", '{"cluster": {}, "task": {"type": "chief"}}'))
    task, leaders = tf_config["task"], {"chief", "master"} & tf_config["cluster"].keys()
    is_chief = task["type"] in ("chief", "master") or (not leaders and task["index"] == 0)
    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            train(args, is_chief, Path(scratch))
    except tf.errors.OpError as error:
        print(f"the step is lost, and so the training: {error.message}", file=sys.stderr, flush=True)
        os._exit(1)  # TensorFlow's own goodbye to a cluster that is half gone may wait for ever


if __name__ == "__main__":
    main()
