"""Handwritten digits in the manner of 2017: a graph, a session, and host lists on the command line.

It knows nothing of elearn and nothing of TF_CONFIG. Between-graph replication with asynchronous updates:
parameter servers hold the variables, each worker builds the same graph, worker 0 is the chief of the session.

    python train.py --job_name=worker --task_index=0 --ps_hosts=a:2222 --worker_hosts=b:2222,c:2222

Without --job_name it trains in one process.
"""

import argparse
import shutil
import sys
import time

import numpy as np
import tensorflow.compat.v1 as tf

FLAGS = None

PIXELS = 64
CLASSES = 10


def inference(images):
    with tf.variable_scope("hidden"):
        weights = tf.get_variable("weights", [PIXELS, FLAGS.hidden_units])
        biases = tf.get_variable("biases", [FLAGS.hidden_units], initializer=tf.zeros_initializer())
        hidden = tf.nn.relu(tf.nn.xw_plus_b(images / 16.0, weights, biases))
    with tf.variable_scope("softmax"):
        weights = tf.get_variable("weights", [FLAGS.hidden_units, CLASSES])
        biases = tf.get_variable("biases", [CLASSES], initializer=tf.zeros_initializer())
        return tf.nn.xw_plus_b(hidden, weights, biases)


def accuracy_of(logits, labels):
    return tf.reduce_mean(tf.cast(tf.equal(tf.argmax(logits, 1), labels), tf.float32))


def export(data):
    """Measure the last checkpoint on the held-out digits and write it as a SavedModel."""
    export_dir = FLAGS.log_dir + "/export"
    with tf.Graph().as_default(), tf.Session() as session:
        images = tf.placeholder(tf.float32, [None, PIXELS], name="images")
        labels = tf.placeholder(tf.int64, [None], name="labels")
        logits = inference(images)
        outputs = {"classes": tf.argmax(logits, 1), "scores": tf.nn.softmax(logits)}
        accuracy = accuracy_of(logits, labels)
        tf.train.Saver().restore(session, tf.train.latest_checkpoint(FLAGS.log_dir))
        held_out = session.run(accuracy, {images: data["x_test"], labels: data["y_test"]})
        shutil.rmtree(export_dir, ignore_errors=True)
        tf.saved_model.simple_save(session, export_dir, {"images": images}, outputs)
    print(f"Exported to {export_dir}: held-out accuracy {held_out:.4f}", flush=True)


def main(_):
    if FLAGS.job_name:
        cluster = tf.train.ClusterSpec({"ps": FLAGS.ps_hosts.split(","), "worker": FLAGS.worker_hosts.split(",")})
        server = tf.train.Server(cluster, job_name=FLAGS.job_name, task_index=FLAGS.task_index)
        if FLAGS.job_name == "ps":
            server.join()
        master = server.target
        worker = f"/job:worker/task:{FLAGS.task_index}"
        placement = tf.train.replica_device_setter(worker_device=worker, cluster=cluster)
        # Without filters a session waits for all workers, also for one that has done its part and left.
        config = tf.ConfigProto(device_filters=["/job:ps", worker], intra_op_parallelism_threads=1)
    else:
        master, placement = "", None
        config = tf.ConfigProto(intra_op_parallelism_threads=1)
    is_chief = FLAGS.task_index == 0

    data = dict(np.load(FLAGS.data_dir + "/digits.npz"))
    random = np.random.RandomState(FLAGS.task_index)

    with tf.Graph().as_default():
        with tf.device(placement):
            global_step = tf.train.get_or_create_global_step()
            images = tf.placeholder(tf.float32, [None, PIXELS], name="images")
            labels = tf.placeholder(tf.int64, [None], name="labels")
            logits = inference(images)
            loss = tf.losses.sparse_softmax_cross_entropy(labels, logits)
            accuracy = accuracy_of(logits, labels)
            optimizer = tf.train.AdamOptimizer(FLAGS.learning_rate)
            train_op = optimizer.minimize(loss, global_step=global_step)
            tf.summary.scalar("loss", loss)
            tf.summary.scalar("accuracy", accuracy)

        if not is_chief:
            # A session that comes before worker 0 has set the variables looks again only after 30 seconds.
            unset = tf.report_uninitialized_variables()
            with tf.Session(master, config=config) as session:
                while session.run(unset).size:
                    time.sleep(0.2)

        with tf.train.MonitoredTrainingSession(
            master=master,
            is_chief=is_chief,
            checkpoint_dir=FLAGS.log_dir,
            hooks=[tf.train.StopAtStepHook(last_step=FLAGS.train_steps)],
            save_checkpoint_secs=10,
            save_summaries_steps=100,
            config=config,
        ) as session:
            local_step = 0
            while not session.should_stop():
                rows = random.randint(0, len(data["x_train"]), FLAGS.batch_size)
                feed = {images: data["x_train"][rows], labels: data["y_train"][rows]}
                _, step, loss_now, accuracy_now = session.run([train_op, global_step, loss, accuracy], feed)
                if local_step % 50 == 0:
                    where = f"Worker {FLAGS.task_index}: step {local_step} (global {step})"
                    print(f"{where}, loss {loss_now:.4f}, accuracy {accuracy_now:.4f}", flush=True)
                local_step += 1

    if is_chief:
        export(data)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    # Flags for defining the tf.train.ClusterSpec
    parser.add_argument("--ps_hosts", default="", help="Comma-separated list of hostname:port")
    parser.add_argument("--worker_hosts", default="", help="Comma-separated list of hostname:port")
    # Flags for defining the tf.train.Server
    parser.add_argument("--job_name", default="", choices=["", "ps", "worker"], help="Empty: one process")
    parser.add_argument("--task_index", type=int, default=0, help="Index of the task within its job")
    # Flags for the training
    parser.add_argument("--data_dir", default="data", help="Folder with digits.npz (see ../digits/prepare.py)")
    parser.add_argument("--log_dir", default="logs", help="Folder for checkpoints, summaries and export/")
    parser.add_argument("--train_steps", type=int, default=1000, help="Global steps")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--hidden_units", type=int, default=128)
    parser.add_argument("--learning_rate", type=float, default=0.003)
    FLAGS, unparsed = parser.parse_known_args()
    tf.logging.set_verbosity(tf.logging.ERROR)
    tf.disable_v2_behavior()
    tf.app.run(main=main, argv=[sys.argv[0], *unparsed])
