"""Turns COCO JSON files and Pascal VOC folders into `tf.data` batches.

`coco` and `voc` read annotations into records; `transforms` changes an image together with its annotations; `pipeline`
makes batches of both; `shapes` generates a small dataset to experiment with.
"""

from kerasdet.data.coco import CocoDataset
from kerasdet.data.dataset import Dataset
from kerasdet.data.pipeline import evaluation_batches, training_batches
from kerasdet.data.transforms import RandomFlip, ResizeShortestEdge
from kerasdet.data.voc import VocDataset

__all__ = [
    "CocoDataset",
    "Dataset",
    "RandomFlip",
    "ResizeShortestEdge",
    "VocDataset",
    "evaluation_batches",
    "training_batches",
]
