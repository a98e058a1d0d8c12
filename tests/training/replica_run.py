"""Runs short trainings and saves their weights and metrics: on one device, on two, or as a worker of TF_CONFIG.

python replica_run.py one_device|mirrored|multi_worker ANNOTATIONS OUT OUT_DIR
"""

import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

sys.path.insert(0, str(Path(__file__).parents[1]))
import tiny

from kerasdet import evaluate
from kerasdet.data import CocoDataset, RandomFlip, ResizeShortestEdge
from kerasdet.data.pipeline import training_batches
from kerasdet.evaluation import validation_losses
from kerasdet.models import MaskBranch
from kerasdet.training import SGD, WarmupMultiStep, make_strategy, train

STEPS, BATCH_SIZE = 20, 4
TRAINED = {"float32": "retinanet", "float64": "mask_rcnn"}


def detector(name):
    """Makes a RetinaNet or a Mask R-CNN whose norms take statistics over all replicas."""
    keras.utils.set_random_seed(1)
    if name == "retinanet":
        return tiny.detector(backbone=tiny.backbone(norm="sync_bn"))
    backbone = tiny.backbone(norm="sync_bn", out_features=("c2", "c3", "c4", "c5"))
    return tiny.rcnn(backbone=backbone, branches=[MaskBranch(num_convs=1, channels=8)])


def optimizer(precision):
    """Returns AdamW for float64, SGD for float32; both clip gradients."""
    if precision == "float64":
        return keras.optimizers.AdamW(1e-3, weight_decay=0.05, global_clipnorm=1.0)
    return SGD(WarmupMultiStep(2e-4, milestones=(15,), warmup_steps=5), weight_decay=1e-3, global_clipnorm=1.0)


def main(strategy, annotations, out, out_dir):
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})  # it takes longer than the steps
    if strategy == "mirrored":
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    transforms = [ResizeShortestEdge((64, 80, 96), 128), RandomFlip()]
    arrays = {}
    with make_strategy(strategy).scope():
        data = CocoDataset(annotations, masks=True)
        for precision, name in TRAINED.items():
            keras.config.set_floatx(precision)
            keras.config.set_dtype_policy(precision)
            way = "fit" if (strategy, precision) == ("mirrored", "float32") else "train"
            model = detector(name)
            found = trained(model, data, transforms, precision, way, Path(out_dir) / name)
            if precision == "float32":
                found |= evaluated(model, data)
            arrays.update({f"{precision} {name} {key}": value for key, value in found.items()})
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")
        arrays.update({f"float32 mask_rcnn {k}": v for k, v in evaluated(detector("mask_rcnn"), data).items()})
    np.savez(out, **arrays)


def trained(model, data, transforms, precision, way, out_dir):
    """Trains a detector by Keras' `fit` or by `train`; returns its weights and how far they moved."""
    before = [variable.numpy() for variable in model.trainable_variables]
    if way == "fit":
        model.compile(optimizer=optimizer(precision))
        model.fit(training_batches(data, BATCH_SIZE, transforms), steps_per_epoch=STEPS, shuffle=False, verbose=0)
    else:
        train(
            model,
            data,
            optimizer=optimizer(precision),
            steps=STEPS,
            batch_size=BATCH_SIZE,
            transforms=transforms,
            out_dir=out_dir,
        )
    moved = [abs(new.numpy() - old).max() for new, old in zip(model.trainable_variables, before, strict=True)]
    return {"moved": np.max(moved), **{f"{i} {v.path}": v.numpy() for i, v in enumerate(model.variables)}}


def evaluated(model, data):
    return {**validation_losses(model, data), **evaluate(model, data).summary}


if __name__ == "__main__":
    main(*sys.argv[1:])
