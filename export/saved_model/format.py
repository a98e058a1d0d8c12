"""Defines the export format of SavedModels."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from kerasdet.export.protocol import Format, WorkerRun, run_worker
from kerasdet.export.saved_model.load import SavedModelPredictor, read_metadata
from kerasdet.export.saved_model.serving import new_version
from kerasdet.export.saved_model.spec import SPEC
from kerasdet.export.saved_model.write import export_saved_model
from kerasdet.inference.padded import from_tf_od
from kerasdet.models import Detector
from kerasdet.ops.dispatch import LIBRARY


def run_in_worker(model: Detector, path: Path, images: Sequence[np.ndarray]) -> WorkerRun:
    """Runs all signatures of a SavedModel in a process that has only TensorFlow.

    Args:
        model: The detector. Its preprocessing makes the batches for the comparison.
        path: Path of the folder of the SavedModel.
        images: (H, W, 3) uint8 arrays. The signature ``encoded`` gets all images, the other signatures get the first
            image.

    Returns:
        The batch and the detections of each signature, and the run times; see `WorkerRun`.
    """
    metadata = read_metadata(path)
    libraries = [str(LIBRARY)] if metadata["ops"] == "compiled" else []
    with tempfile.TemporaryDirectory() as folder:
        for index, image in enumerate(images):
            Image.fromarray(image).save(Path(folder) / f"{index}.png")
        outputs = run_worker(Path(__file__).with_name("verify_worker.py"), path, folder, *libraries)
    first, every = (model.preprocessing.pad_batch(list(group)) for group in (images[:1], images))
    cases = []
    for signature, batch in (("serving_default", first), ("float_image", first), ("encoded", every)):
        own = {key.split("/")[1]: value for key, value in outputs.items() if key.startswith(f"{signature}/")}
        found = from_tf_od(own, batch["original_size"], metadata["class_offset"], model.branch_outputs)
        cases.append((batch, {name: value.numpy() for name, value in found.items()}))
    return WorkerRun(cases, outputs["seconds"].tolist())


FORMAT = Format(
    spec=SPEC,
    runtime="TensorFlow",
    write=export_saved_model,
    load=SavedModelPredictor,
    read_metadata=read_metadata,
    run_in_worker=run_in_worker,
    new_version=new_version,
)
