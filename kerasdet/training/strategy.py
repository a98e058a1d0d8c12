"""Which devices a training runs on."""

import contextlib
import json
import os

import tensorflow as tf

STRATEGIES = ("one_device", "mirrored", "multi_worker", "tpu")


def make_strategy(name: str) -> tf.distribute.Strategy:
    """A `tf.distribute` strategy, in whose scope a model is to be built.

    Args:
        name: "one_device"; "mirrored", all GPUs of this machine, or its logical CPU devices where there are none;
            "multi_worker", the processes that the environment variable TF_CONFIG names, each with all of its GPUs;
            "tpu", the TPU that TensorFlow's resolver finds.

    Raises:
        ValueError: For another name, a TF_CONFIG that is none, or no TPU.
    """
    if name == "one_device":
        return tf.distribute.get_strategy()
    if name == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    if name == "multi_worker":
        _check_tf_config(os.environ.get("TF_CONFIG"))
        return tf.distribute.MultiWorkerMirroredStrategy()
    if name == "tpu":
        return _tpu()
    raise ValueError(f"There is no strategy {name!r}: set STRATEGY to one of {', '.join(STRATEGIES)}.")


def _check_tf_config(text):
    example = '{"cluster": {"worker": ["host0:12345", "host1:12345"]}, "task": {"type": "worker", "index": 0}}'
    with contextlib.suppress(TypeError, KeyError, ValueError):
        config = json.loads(text)
        if config["task"]["type"] in config["cluster"]:
            return
    raise ValueError(
        f"STRATEGY multi_worker finds the workers in the environment variable TF_CONFIG, which is {text!r}: set it as "
        f"in {example}, or start local workers with kerasdet train --workers N."
    )


def _tpu():
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect()
    except (ValueError, tf.errors.OpError) as error:
        raise ValueError(f"STRATEGY tpu finds no TPU ({' '.join(str(error).split())[:200]}).") from None
    return tf.distribute.TPUStrategy(resolver)
