"""Turns datasets of any common format into `tf.data` batches.

`recognise` opens a dataset: it finds out the format, whose module reads it into the contents of a COCO file, and
`dataset` makes records of these. `transforms` changes an image together with its annotations; `sampler` decides in
which order images come; `pipeline` makes batches. `shapes` generates a small dataset to experiment with.
"""

from kerasdet.data.coco import CocoDataset
from kerasdet.data.dataset import Dataset
from kerasdet.data.pipeline import evaluation_batches, training_batches
from kerasdet.data.recognise import dataset_from_examples, open_dataset, read_class_names
from kerasdet.data.sampler import ImageSampler
from kerasdet.data.transforms import RandomFlip, ResizeShortestEdge
from kerasdet.data.voc import VocDataset

__all__ = [
    "CocoDataset",
    "Dataset",
    "ImageSampler",
    "RandomFlip",
    "ResizeShortestEdge",
    "VocDataset",
    "dataset_from_examples",
    "evaluation_batches",
    "open_dataset",
    "read_class_names",
    "training_batches",
]
