"""Data sets on their way into a model: COCO JSON to `tf.data` batches.

`coco` reads annotations into records, `transforms` change an image together with what is annotated in it,
`pipeline` makes batches of both; `shapes` is a generated data set to try things on.
"""

from kerasdet.data.coco import CocoDataset
from kerasdet.data.pipeline import evaluation_batches, training_batches
from kerasdet.data.transforms import RandomFlip, ResizeShortestEdge

__all__ = ["CocoDataset", "RandomFlip", "ResizeShortestEdge", "evaluation_batches", "training_batches"]
