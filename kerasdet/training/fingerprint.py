"""Identifies a dataset by a short string, to check that all workers and processes of a run use the same data."""

import os
import zlib
from pathlib import Path
from typing import Any


def fingerprint(data: Any) -> str:
    """Identifies a dataset by its class names and, in order, the ids, file names and objects of its images.

    An object counts with its box, class, crowd flag and extra values; pixels, masks and keypoints do not count. Equal
    datasets in different folders have equal fingerprints. Image ids alone would not suffice, because most files count
    them from 1.

    Args:
        data: Dataset.

    Returns:
        A string such as "292 images of 3 classes (checksum 0a1b2c3d)".
    """
    checksum = zlib.crc32("\n".join(map(str, data.class_names)).encode())
    for record in data.records:
        checksum = zlib.crc32(os.fsencode(f"{record.image_id} {Path(record.path).name}"), checksum)
        for values in (record.boxes, record.class_ids, record.is_crowd, record.extra_values):
            checksum = zlib.crc32(b"" if values is None else values.tobytes(), checksum)
    return f"{len(data.records)} images of {data.num_classes} classes (checksum {checksum:08x})"
