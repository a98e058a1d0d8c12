"""Compares two replicas that have half of a batch each with one device that has the whole batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf
from models.models import batch, retinanet

TESTS = Path(__file__).parents[1]
TWO_DEVICES = """
import json, sys
import keras, numpy as np, tensorflow as tf
tests, cases = sys.argv[1:]
sys.path.insert(0, tests)
from models.models import batch, on_plain_features
from kerasdet.models import Centerness
from kerasdet.models.common import LossNormalizer
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})  # it takes longer than the steps
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
def build(name, options):
    keras.utils.set_random_seed(1)
    if "normalizer" in options:
        options = {**options, "normalizer": LossNormalizer(options["normalizer"])}
    if "centerness" in options:
        options = {**options, "centerness": Centerness(**options["centerness"])}
    return on_plain_features(name, **options)
"""

COMPARE = """
def step(model, data):
    with tf.GradientTape() as tape:
        outputs = model.forward(data, training=True)
        losses = model.compute_losses(outputs, model.compute_targets(outputs, data))
        total = tf.add_n(list(losses.values()))
    gradients = tape.gradient(total, [v.value for v in model.trainable_variables])
    return losses, [tf.zeros_like(v) if g is None else g for g, v in zip(gradients, model.trainable_variables)]

data = {key: tf.constant(value) for key, value in batch().items()}
halves = strategy.experimental_distribute_values_from_function(
    lambda context: {k: v[context.replica_id_in_sync_group :][:1] for k, v in data.items()}
)
total = lambda value: sum(part.numpy() for part in strategy.experimental_local_results(value))
for name, options in json.loads(cases):
    losses, gradients = step(build(name, options), data)
    with strategy.scope():
        model = build(name, options)
    on_half = lambda half: step(model, half)
    if options.get("normalizer") == "ema":  # it has a state; to trace the others takes longer than to run them
        on_half = tf.function(on_half)
    both = strategy.run(on_half, args=(halves,))
    differences = {key: abs(total(both[0][key]) - value.numpy()) for key, value in losses.items()}
    for ours, theirs in zip(both[1], gradients, strict=True):
        theirs = theirs.numpy()
        difference = np.abs(total(ours) - theirs).max() / max(np.abs(theirs).max(), 1e-3)
        differences["gradient"] = max(differences.get("gradient", 0), difference)
    print(json.dumps({key: float(value) for key, value in differences.items()}))
"""

CASES = [
    ("retinanet", {"normalizer": "batch"}),
    ("retinanet", {"normalizer": "ema"}),
    ("retinanet", {"normalizer": "image"}),
    ("retinanet", {"normalizer": "image_sum"}),
    ("fcos", {"normalizer": "ema"}),
    ("fcos", {"centerness": {"weights_boxes": True}}),
    ("rtmdet_ins", {}),
    ("mask_keypoint_rcnn", {}),
]
UNEVEN_CASES = [("retinanet", {"normalizer": "image"}), ("fcos", {}), ("rtmdet_ins", {}), ("mask_keypoint_rcnn", {})]


UNEVEN = """
data = batch()
def batches():
    yield data
    yield {key: value[:1] for key, value in data.items()}
# Numbers of leading dimensions that change from batch to batch; two of other entries, images and objects.
free = {"image": 3, "image_size": 1, "original_size": 1, "image_id": 1}
open_sizes = {
    key: tf.TensorSpec([None] * free.get(key, 2) + list(v.shape[free.get(key, 2):]), v.dtype) for key, v in data.items()
}
options = tf.data.Options()
options.autotune.enabled = False  # to delete an iterator would wait for the autotuner
dataset = tf.data.Dataset.from_generator(batches, output_signature=open_sizes).with_options(options)
for name, options in json.loads(cases):
    model = build(name, options)
    model.compile(optimizer="sgd", run_eagerly=True)  # only the replicas need a graph
    with strategy.scope():
        replicated = build(name, options)
        replicated.compile(optimizer="sgd")
    differences = {}
    for way in ("evaluate", "predict") if model.branch_outputs else ("evaluate",):
        arguments = {"return_dict": True} if way == "evaluate" else {}
        whole, parts = (getattr(each, way)(dataset, verbose=0, **arguments) for each in (model, replicated))
        assert whole.keys() == parts.keys()
        for key, value in whole.items():
            assert np.shape(parts[key]) == np.shape(value), key
            differences[f"{way} {key}"] = float(np.abs(np.subtract(parts[key], value, dtype=float)).max())
    try:
        replicated.fit(dataset.skip(1), verbose=0)
    except ValueError as error:
        differences["error"] = str(error)
    print(json.dumps(differences))
"""


def on_two_devices(script, cases):
    """Runs a script once for all cases; returns what it printed for each."""
    process = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES + script, str(TESTS), json.dumps(cases)],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return [json.loads(line) for line in process.stdout.splitlines()[-len(cases) :]]


@pytest.fixture(scope="module")
def step_differences():
    return on_two_devices(COMPARE, CASES)


@pytest.fixture(scope="module")
def uneven_differences():
    return on_two_devices(UNEVEN, UNEVEN_CASES)


@pytest.mark.slow
@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{name}-{options}" for name, options in CASES])
def test_losses_and_gradients_of_replicas_add_up(step_differences, case):
    assert max(step_differences[case].values()) < 1e-4, step_differences[case]


@pytest.mark.slow
@pytest.mark.parametrize("case", range(len(UNEVEN_CASES)), ids=[name for name, _ in UNEVEN_CASES])
def test_last_batch_with_fewer_images_than_replicas_evaluates_as_on_one(uneven_differences, case):
    differences = dict(uneven_differences[case])
    message = differences.pop("error")
    assert "evaluate loss" in differences and ("predict boxes" in differences) == (case > 1)
    assert max(differences.values()) < 1e-3, differences
    assert message.startswith(
        "A training batch of 1 images cannot be divided evenly among 2 replicas: choose a batch size"
    )


def test_batch_that_does_not_divide_into_micro_batches_raises():
    model = retinanet()
    model.compile(optimizer="sgd")
    model.micro_batches = 2
    dataset = tf.data.Dataset.from_tensors({name: value[:1] for name, value in batch().items()})
    with pytest.raises(
        ValueError, match=r"batch of 1 images cannot be divided evenly into 2 micro-batches: .* multiple of 2"
    ):
        model.fit(dataset, verbose=0)
