"""Turns datasets of any common format into `tf.data` batches.

`recognise` detects the format of a dataset. The module of that format reads the dataset into a dict in the form of a
COCO file, and `dataset` converts the dict to records, one per image. `sampler` determines the order of images,
`transforms` change an image together with its annotations, and `pipeline` makes batches. `shapes` generates a small
dataset to experiment with.
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
