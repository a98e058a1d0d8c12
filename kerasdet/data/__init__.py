"""Data sets on their way into a model: COCO JSON or Pascal VOC folders to `tf.data` batches.

`coco` and `voc` read annotations into records, `transforms` change an image together with what is annotated in it,
`pipeline` makes batches of both; `shapes` is a generated data set to try things on.
"""

from kerasdet.data.coco import CocoDataset
from kerasdet.data.pipeline import evaluation_batches, training_batches
from kerasdet.data.transforms import RandomFlip, ResizeShortestEdge
from kerasdet.data.voc import VocDataset

__all__ = ["CocoDataset", "RandomFlip", "ResizeShortestEdge", "VocDataset", "evaluation_batches", "training_batches"]
