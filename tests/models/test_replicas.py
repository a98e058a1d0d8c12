"""Two replicas with half of a batch each against one with the whole of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
COMPARE = """
import json, sys
import keras, numpy as np, tensorflow as tf
tests, name, options = sys.argv[1:]
sys.path.insert(0, tests)
from models.models import MODELS, batch
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

def step(model, data):
    with tf.GradientTape() as tape:
        outputs = model.forward(data, training=True)
        losses = model.compute_losses(outputs, model.compute_targets(outputs, data))
        total = tf.add_n(list(losses.values()))
    gradients = tape.gradient(total, [v.value for v in model.trainable_variables])
    return losses, [tf.zeros_like(v) if g is None else g for g, v in zip(gradients, model.trainable_variables)]

data = {key: tf.constant(value) for key, value in batch().items()}
def made():
    keras.utils.set_random_seed(1)
    return MODELS[name](**json.loads(options))
losses, gradients = step(made(), data)
with strategy.scope():
    model = made()
halves = strategy.experimental_distribute_values_from_function(
    lambda context: {k: v[context.replica_id_in_sync_group :][:1] for k, v in data.items()}
)
both = strategy.run(tf.function(lambda half: step(model, half)), args=(halves,))
total = lambda value: sum(part.numpy() for part in strategy.experimental_local_results(value))
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
    ("fcos", {"normalizer": "ema"}),
    ("fcos", {"centerness_weights_boxes": True}),
    ("mask_keypoint_rcnn", {}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), CASES)
def test_replicas_count_together(name, options):
    process = subprocess.run(
        [sys.executable, "-c", COMPARE, str(TESTS), name, json.dumps(options)],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
    )
    assert process.returncode == 0, process.stderr[-3000:]
    differences = json.loads(process.stdout.splitlines()[-1])
    assert max(differences.values()) < 1e-4, differences
