"""A short training whose weights are written down: of one device, two of them, or one worker of TF_CONFIG.

python replica_run.py one|mirrored|multi_worker fit|train retinanet|mask_rcnn float32|float64 ANNOTATIONS OUT
"""

import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

sys.path.insert(0, str(Path(__file__).parents[1]))
import tiny

from kerasdet.data import CocoDataset, RandomFlip, ResizeShortestEdge
from kerasdet.data.pipeline import training_batches
from kerasdet.models import MaskBranch
from kerasdet.training import SGD, WarmupMultiStep, make_strategy, train

STEPS, BATCH_SIZE = 20, 4


def detector(name):
    if name == "retinanet":
        return tiny.detector(backbone=tiny.backbone(norm="sync_bn"))
    backbone = tiny.backbone(norm="sync_bn", out_features=("c2", "c3", "c4", "c5"))
    return tiny.rcnn(backbone=backbone, branches=[MaskBranch(5, num_convs=1, channels=8)])


def main(strategy, way, name, precision, annotations, out):
    keras.config.set_floatx(precision)
    if strategy == "mirrored":
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    with make_strategy("one_device" if strategy == "one" else strategy).scope():
        data = CocoDataset(annotations, masks=name == "mask_rcnn")
        keras.utils.set_random_seed(1)
        model = detector(name)
        if precision == "float64":
            optimizer = keras.optimizers.AdamW(1e-3, weight_decay=0.05, global_clipnorm=1.0)
        else:
            schedule = WarmupMultiStep(0.002, milestones=(15,), warmup_steps=5)
            optimizer = SGD(schedule, weight_decay=1e-3, global_clipnorm=1.0)
        transforms = [ResizeShortestEdge((64, 80, 96), 128), RandomFlip()]
        if way == "train":
            train(
                model,
                data,
                optimizer=optimizer,
                steps=STEPS,
                batch_size=BATCH_SIZE,
                transforms=transforms,
                out_dir=Path(out).with_suffix(""),
                log_every=1,
            )
        else:
            model.compile(optimizer=optimizer)
            model.fit(training_batches(data, BATCH_SIZE, transforms), steps_per_epoch=STEPS, verbose=0)
    np.savez(out, *[v.numpy() for v in model.variables])


if __name__ == "__main__":
    main(*sys.argv[1:])
