"""A deterministic training that writes a checkpoint after each few steps and may be killed at any moment.

python survival_run.py ANNOTATIONS OUT_DIR SAVE_EVERY
"""

import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

sys.path.insert(0, str(Path(__file__).parents[1]))
import tiny

from kerasdet.data import CocoDataset, RandomFlip, ResizeShortestEdge
from kerasdet.training import WarmupCosine, train

STEPS = 240


def main(annotations, out_dir, save_every):
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(0)
    optimizer = keras.optimizers.AdamW(WarmupCosine(2e-3, STEPS, 20), use_ema=True, ema_momentum=0.9)
    model = train(
        tiny.rcnn(branches=[]),
        CocoDataset(annotations),
        optimizer=optimizer,
        steps=STEPS,
        batch_size=2,
        transforms=[ResizeShortestEdge((40, 48, 64), 96), RandomFlip()],
        epoch_steps=int(save_every),
        out_dir=out_dir,
    )
    np.savez(Path(out_dir) / "final.npz", *[variable.numpy() for variable in model.variables])


if __name__ == "__main__":
    main(*sys.argv[1:])
