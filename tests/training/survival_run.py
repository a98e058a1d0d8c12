"""A deterministic training, to be killed.

python survival_run.py ANNOTATIONS OUT_DIR SAVE_EVERY whole|faults

``whole`` trains, or resumes a killed training. ``faults`` trains in one process that dies, as far as its files can
tell, at each of `FAULTS` and starts again.
"""

import contextlib
import os
import sys
from pathlib import Path
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

sys.path.insert(0, str(Path(__file__).parents[1]))
import tiny

from kerasdet.data import CocoDataset, RandomFlip, ResizeShortestEdge
from kerasdet.training import Checkpointing, WarmupCosine, train

STEPS = 40
# Calls of the operating system at which a run dies. The first two flushes and the first replacement of a process are
# those of metrics.jsonl; each checkpoint has two flushes (file, folder) and one replacement.
FAULTS = (
    ("fsync", 1),  # before metrics.jsonl is complete
    ("fsync", 3),  # the first checkpoint is written, but may not be on the disk
    ("replace", 3),  # the second is on the disk, but does not have its name
    ("fsync", 4),  # the next has its name
    ("unlink", 2),  # the oldest is to be deleted
    ("replace", 2),
)


class Killed(BaseException):
    """Ends a training where a kill would have ended its process."""


@contextlib.contextmanager
def killed_at(function, count):
    """Raises `Killed` inside the block at a call of `os.fsync`, `os.replace` or of `unlink` for a checkpoint."""
    remaining = iter(range(count - 1, -1, -1))
    unlink = Path.unlink

    def dying(original):
        def call(*arguments):
            if next(remaining) == 0:
                raise Killed
            return original(*arguments)

        return call

    def unlink_as_if_killed(path, *arguments, **kwargs):
        if function == "unlink" and path.name.startswith("step_") and next(remaining) == 0:
            raise Killed
        # A killed process cleans nothing up: its partial files stay.
        if not path.name.startswith(".partial_"):
            unlink(path, *arguments, **kwargs)

    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch.object(Path, "unlink", unlink_as_if_killed))
        if function != "unlink":
            patches.enter_context(mock.patch.object(os, function, dying(getattr(os, function))))
        try:
            yield
        except Killed:
            return
        raise AssertionError(f"The run ended before call {count} of {function}.")


def run(annotations, out_dir, save_every):
    keras.utils.set_random_seed(0)
    optimizer = keras.optimizers.AdamW(WarmupCosine(2e-3, STEPS, 20), use_ema=True, ema_momentum=0.9)
    return train(
        tiny.rcnn(backbone=tiny.PlainBackbone(features=("c2", "c3", "c4", "c5"), norm="bn"), branches=[]),
        CocoDataset(annotations),
        optimizer=optimizer,
        steps=STEPS,
        batch_size=2,
        transforms=[ResizeShortestEdge((40, 48, 64), 96), RandomFlip()],
        checkpointing=Checkpointing(steps_per_epoch=save_every),
        log_every=5,
        out_dir=out_dir,
    )


def main(annotations, out_dir, save_every, way):
    tf.config.experimental.enable_op_determinism()
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})  # it takes longer than the steps
    arguments = (annotations, out_dir, int(save_every))
    for fault in FAULTS if way == "faults" else ():
        with killed_at(*fault):
            run(*arguments)
    model = run(*arguments)
    np.savez(Path(out_dir) / "final.npz", *[variable.numpy() for variable in model.variables])


if __name__ == "__main__":
    main(*sys.argv[1:])
