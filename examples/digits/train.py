"""Learn handwritten digits: alone, or as a cluster of a chief, workers and parameter servers.

The same file runs everywhere, not one line changed:

    python train.py --data DIR --out DIR        by hand, one process
    elearn training submit training.yaml        a cluster: elearn sets TF_CONFIG for every process

In a cluster the chief drives the training (ParameterServerStrategy); workers compute gradients and parameter
servers hold the variables, both for as long as the platform lets them. DIR of --out gets

    checkpoints/   the last three; a new start goes on from the newest
    logs/          for TensorBoard
    export/        the model as a SavedModel: pixels [None, 64] -> digit [None], probabilities [None, 10]
"""

import argparse
import json
import math
import os
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

STEPS_A_CALL = 12  # steps a worker does for one call of the chief: a call costs more than a step of a model this small


class Termination:
    """SIGTERM asks to stop: the training saves a checkpoint and exits, and is given `grace` seconds for it.

    A thread of its own hears of the signal, because TensorFlow may hold the main thread in a call that never
    returns: the parameter servers may have been told to stop as well.
    """

    def __init__(self, grace: float) -> None:
        self.asked = threading.Event()
        self.can_save = False
        heard, self._told = socket.socketpair()
        self._told.setblocking(False)
        signal.set_wakeup_fd(self._told.fileno())
        signal.signal(signal.SIGTERM, lambda *_: None)
        threading.Thread(target=self._wait, args=(heard, grace), name="sigterm", daemon=True).start()

    def _wait(self, heard: socket.socket, grace: float) -> None:
        while signal.SIGTERM not in heard.recv(1):
            pass
        self.asked.set()
        if self.can_save:
            time.sleep(grace)
        leave(128 + signal.SIGTERM)


def leave(code: int) -> None:
    """End the process now: TensorFlow's own goodbye to a cluster that is half gone may wait for ever."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def say(text: str) -> None:
    print(text, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with digits.npz (see prepare.py)")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, logs and export")
    parser.add_argument("--epochs", type=int, default=25, help="passes over the training data (25)")
    parser.add_argument("--steps", type=int, help="steps in all, in place of --epochs")
    parser.add_argument("--batch", type=int, default=64, help="digits a step (64)")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="of Adam (0.003)")
    parser.add_argument("--checkpoint-every", type=int, default=5, metavar="EPOCHS", help="(5)")
    parser.add_argument("--threads", type=int, default=1, help="of one operation; the model is small (1)")
    parser.add_argument("--step-delay", type=float, default=0.0, metavar="SECONDS", help="make it last longer (0)")
    args = parser.parse_args()
    for name in ("epochs", "steps", "batch", "checkpoint_every", "threads"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return args


def serve(threads: int) -> None:
    """Be a worker or a parameter server, for as long as the platform lets this process live."""
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    config = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=threads)
    server = tf.distribute.Server(
        resolver.cluster_spec(),
        job_name=resolver.task_type,
        task_index=resolver.task_id,
        config=config,
        protocol="grpc",
    )
    say(f"{resolver.task_type} {resolver.task_id} serves at {server.target}")
    server.join()


def build_model() -> Any:
    return tf.keras.Sequential(
        [
            tf.keras.Input((64,), name="pixels"),
            tf.keras.layers.Rescaling(1 / 16),  # inside the model, so that who predicts need not know of it
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


def train(args: argparse.Namespace, cluster: dict[str, list[str]], termination: Termination) -> None:
    with np.load(args.data / "digits.npz") as data:
        x_train, y_train, x_test, y_test = (data[name] for name in ("x_train", "y_train", "x_test", "y_test"))

    coordinator: Any = None
    strategy = tf.distribute.get_strategy()  # of one process, unless there is a cluster
    if cluster:
        say("waiting for the cluster: " + ", ".join(f"{len(cluster[role])} {role}" for role in sorted(cluster)))
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
        strategy = tf.distribute.ParameterServerStrategy(resolver)
        coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)

    with strategy.scope():
        model = build_model()
        optimizer = tf.keras.optimizers.Adam(args.learning_rate)
        optimizer.build(model.trainable_variables)
    plain = build_model()  # a copy that knows of no cluster: to measure and to export
    steps_done = tf.Variable(0, dtype=tf.int64)

    def batches() -> Any:
        rows = tf.data.Dataset.from_tensor_slices((x_train, y_train))
        return rows.shuffle(len(x_train)).repeat().batch(args.batch, drop_remainder=True).prefetch(2)

    def step(pixels: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            logits = model(pixels, training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        right = tf.reduce_mean(tf.cast(tf.argmax(logits, axis=-1) == labels, tf.float32))
        return tf.stack([loss, right])

    def steps(batch: Any, count: Any) -> Any:
        """The sums of loss and accuracy over `count` steps."""
        total = tf.zeros([2])
        for _ in tf.range(count):
            total += strategy.run(step, args=next(batch))
        return total

    batch = iter(coordinator.create_per_worker_dataset(batches) if coordinator else batches())
    several_steps = tf.function(steps)
    call: Callable[..., Any] = coordinator.schedule if coordinator else lambda function, args: function(*args)

    checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer, steps_done=steps_done)
    checkpoints = tf.train.CheckpointManager(checkpoint, str(args.out / "checkpoints"), max_to_keep=3)
    if checkpoints.latest_checkpoint:
        checkpoint.restore(checkpoints.latest_checkpoint).assert_consumed()
        say(f"going on from {checkpoints.latest_checkpoint}, step {steps_done.numpy()}")
    board = tf.summary.create_file_writer(str(args.out / "logs"))

    steps_an_epoch = math.ceil(len(x_train) / args.batch)
    last_step = args.steps or args.epochs * steps_an_epoch
    saved_step = now_step = int(steps_done.numpy())
    termination.can_save = True

    def save() -> None:
        steps_done.assign(now_step)
        checkpoints.save(checkpoint_number=now_step)

    while now_step < last_step:
        began_at, stop_at = now_step, min(last_step, now_step + steps_an_epoch)
        results = []
        while now_step < stop_at and not termination.asked.is_set():
            count = min(STEPS_A_CALL, stop_at - now_step)
            results.append(call(several_steps, args=(batch, tf.constant(count))))
            now_step += count
            termination.asked.wait(args.step_delay * count)
        if coordinator:
            coordinator.join()
            results = coordinator.fetch(results)
        if termination.asked.is_set():
            save()
            say(f"told to stop: checkpoint saved at step {now_step}")
            leave(128 + signal.SIGTERM)
        loss, accuracy = (float(value) for value in np.sum(results, axis=0) / (now_step - began_at))
        plain.set_weights(model.get_weights())
        held_out = float(np.mean(np.argmax(plain(x_test), axis=-1) == y_test))
        say(f"step {now_step}/{last_step} loss {loss:.4f} accuracy {accuracy:.4f} held-out {held_out:.4f}")
        with board.as_default(step=now_step):
            tf.summary.scalar("loss", loss)
            tf.summary.scalar("accuracy", accuracy)
            tf.summary.scalar("held_out_accuracy", held_out)
        board.flush()
        if now_step - saved_step >= args.checkpoint_every * steps_an_epoch or now_step == last_step:
            save()
            saved_step = now_step

    plain.set_weights(model.get_weights())
    held_out = float(np.mean(np.argmax(plain(x_test), axis=-1) == y_test))
    export(plain, args.out / "export")
    say(f"exported to {args.out / 'export'}: held-out accuracy {held_out:.4f}")


def main() -> None:
    args = arguments()
    tf_config = json.loads(os.environ.get("TF_CONFIG", "{}"))
    cluster = tf_config.get("cluster", {})
    if cluster and not (cluster.get("worker") and cluster.get("ps")):
        sys.exit("a cluster needs a worker and a ps at least; for one process start the chief alone")
    if cluster and tf_config["task"]["type"] in ("worker", "ps"):
        serve(args.threads)
    termination = Termination(grace=5)
    tf.get_logger().setLevel("ERROR")  # every checkpoint of a cluster warns of retracing
    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    try:
        train(args, cluster, termination)
    except tf.errors.OpError as error:
        if not isinstance(error, tf.errors.UnavailableError | tf.errors.AbortedError):
            traceback.print_exc()
        # A lost worker is waited for, so this is a parameter server, and with it the variables are gone.
        # The next start goes on from the last checkpoint.
        print(f"the training is lost: {error.message.splitlines()[0]}", file=sys.stderr)
        leave(128 + signal.SIGTERM if termination.asked.is_set() else 1)
    leave(0)


if __name__ == "__main__":
    main()
