import json
import math
from bisect import bisect_right

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import shared

from kerasdet.training.schedules import WarmupCosine, WarmupFlatCosine, WarmupMultiStep


def from_reference(name):
    case = json.loads(shared("reference/schedules.json").read_text())[name]
    warmup = {
        "warmup_steps": case["warmup_iters"],
        "warmup_factor": case["warmup_factor"],
        "warmup": "constant" if name == "warmup_constant" else "linear",
    }
    if name == "warmup_cosine":
        return WarmupCosine(case["base_lr"], case["max_iter"], **warmup), case["lr"]
    return WarmupMultiStep(case["base_lr"], case["milestones"], case["gamma"], **warmup), case["lr"]


@pytest.mark.parametrize("name", ["warmup_multistep", "warmup_cosine", "warmup_constant"])
def test_schedules_equal_detectron2_at_every_step(name):
    schedule, expected = from_reference(name)
    compiled = tf.function(schedule)
    eager = [float(schedule(step)) for step in range(len(expected))]
    traced = [compiled(tf.constant(step, tf.int64)) for step in range(len(expected))]
    np.testing.assert_allclose(eager, expected, rtol=1e-6, atol=0)
    np.testing.assert_allclose(traced, expected, rtol=1e-6, atol=0)
    assert all(lr.dtype == tf.float32 for lr in traced)


@pytest.mark.parametrize("step", [0, 1, 999, 1000, 1_999_999, 2_000_000, 17_000_001, 29_999_999])
def test_long_schedules_keep_their_precision(step):
    warmup = 1e-3 + (1 - 1e-3) * step / 1000 if step < 1000 else 1.0
    cosine = 1e-7 + (0.02 - 1e-7) * math.sin(math.pi / 2 * (30_000_000 - step) / 30_000_000) ** 2
    steps = 0.02 * 0.1 ** bisect_right([2_000_000, 17_000_001], step)
    now = tf.constant(step, tf.int64)
    np.testing.assert_allclose(WarmupCosine(0.02, 30_000_000, final_lr=1e-7)(now), cosine * warmup, rtol=1e-6)
    np.testing.assert_allclose(WarmupMultiStep(0.02, [2_000_000, 17_000_001])(now), steps * warmup, rtol=1e-6)


@pytest.mark.parametrize("steps_per_epoch", [20, 459])
def test_flat_cosine_equals_mmengine(steps_per_epoch):
    traces = json.loads(shared("reference/rtmdet/rtmdet_schedule.json").read_text())["traces"]
    trace = traces[f"learning_rate, {steps_per_epoch} iterations per epoch"]
    schedule = WarmupFlatCosine(0.004, 300 * steps_per_epoch)
    np.testing.assert_allclose([schedule(step) for step in trace["iteration"]], trace["lr"], rtol=1e-6)


def test_flat_cosine_stays_at_final_lr():
    schedule = WarmupFlatCosine(0.5, 100, flat_steps=50, warmup_steps=0, final_lr=0.125)
    assert [float(schedule(step)) for step in (0, 50, 75, 100, 1000)] == [0.5, 0.5, 0.3125, 0.125, 0.125]


def test_cosine_stays_at_final_lr():
    schedule = WarmupCosine(0.1, 10, warmup_steps=0, final_lr=0.01)
    np.testing.assert_allclose([schedule(0), schedule(10), schedule(25)], [0.1, 0.01, 0.01], rtol=1e-6)


def test_rate_is_constant_without_warmup_and_milestones():
    schedule = WarmupMultiStep(0.5, [], warmup_steps=0)
    assert [float(schedule(step)) for step in (0, 1, 10**6)] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    "schedule",
    [
        WarmupMultiStep(0.02, (60, 80), gamma=0.5, warmup_steps=7, warmup_factor=0.1, warmup="constant"),
        WarmupCosine(0.02, 90, warmup_steps=7, warmup_factor=0.1, warmup="constant", final_lr=1e-4),
        WarmupFlatCosine(0.02, 90, flat_steps=30, warmup_steps=7, warmup_factor=0.1, final_lr=1e-4),
    ],
)
def test_schedule_config_round_trip(schedule):
    config = json.loads(json.dumps(keras.optimizers.schedules.serialize(schedule)))
    restored = keras.optimizers.schedules.deserialize(config)
    assert type(restored) is type(schedule)
    assert restored.get_config() == schedule.get_config()
    assert [float(restored(step)) for step in range(95)] == [float(schedule(step)) for step in range(95)]


def test_bad_arguments_raise():
    with pytest.raises(ValueError, match=r"milestones are \[80, 60\]"):
        WarmupMultiStep(0.02, [80, 60])
    with pytest.raises(ValueError, match=r"milestones are \[60, 60\]"):
        WarmupMultiStep(0.02, [60, 60])
    with pytest.raises(ValueError, match=r"WarmupMultiStep\.warmup is 'exponential'"):
        WarmupMultiStep(0.02, [60], warmup="exponential")
    with pytest.raises(ValueError, match=r"WarmupCosine\.warmup_steps is -1"):
        WarmupCosine(0.02, 100, warmup_steps=-1)
    with pytest.raises(ValueError, match=r"WarmupFlatCosine\.flat_steps is 100"):
        WarmupFlatCosine(0.02, 100, flat_steps=100)
    with pytest.raises(ValueError, match=r"WarmupCosine\.total_steps is 0"):
        WarmupCosine(0.02, 0)
    with pytest.raises(ValueError, match=r"WarmupFlatCosine\.base_lr is -1"):
        WarmupFlatCosine(-1, 100)
