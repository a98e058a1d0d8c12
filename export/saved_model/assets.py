"""Writes the asset files of a SavedModel: class names, a description, and how to call it.

| file in ``assets/`` | contents |
|---|---|
| ``labels.txt`` | class names, one per line, in the order of class ids from 0 |
| ``label_map.pbtxt`` | the TF Object Detection API's label map; its ids are the values of ``detection_classes`` |
| ``model_card.md`` | model, classes, preprocessing, signatures and sizes, for people |
| ``kerasdet.json`` | the description of the model for programs, see `kerasdet.export.metadata` |
| ``config.gin`` | the operative gin configuration of the training run, if it is known |
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kerasdet.export.metadata import METADATA_FILE, model_metadata
from kerasdet.models import Detector


def write_assets(
    model: Detector,
    path: Path,
    options: Mapping[str, Any],
    signatures: Mapping,
    gin_config: str | None = None,
) -> None:
    """Writes the folder ``assets`` of a SavedModel.

    Args:
        model: The detector.
        path: Path of the folder of the SavedModel.
        options: Options of the export as JSON values, including ``class_offset``, ``precision`` and ``max_pixels``.
        signatures: The concrete function of each signature, by the name of the signature.
        gin_config: Operative gin configuration of the training run. None: the export contains no configuration.
    """
    folder = path / "assets"
    folder.mkdir(exist_ok=True)
    metadata = model_metadata(model, options)
    _write(folder / METADATA_FILE, json.dumps(metadata, indent=1))
    names = model.class_names
    if names:
        _write(folder / "labels.txt", "\n".join(names))
        _write(folder / "label_map.pbtxt", _label_map(names, options["class_offset"]))
    if gin_config:
        _write(folder / "config.gin", gin_config.strip())
    _write(folder / "model_card.md", _model_card(metadata, path, signatures))


def _write(path, text):
    path.write_text(text + "\n", encoding="utf-8")


def _label_map(names, class_offset):
    items = [
        f"item {{\n  id: {number}\n  name: {json.dumps(name, ensure_ascii=False)}\n}}"
        for number, name in enumerate(names, class_offset)
    ]
    return "\n".join(items)


def _model_card(metadata, path, signatures):
    weights = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    rule = metadata["preprocessing"]
    further = (output["export_name"] for output in metadata["branch_outputs"].values())
    meanings = {**dict.fromkeys(further, "output of a branch of the model"), **_MEANINGS}
    if "mask_boxes" in metadata["branch_outputs"]:
        meanings |= _MEANINGS_OF_WHOLE_MASKS
    lines = [
        f"# {metadata['model']}",
        "",
        f"{metadata['parameters']:,} parameters, network in {metadata['precision']}, {weights / 2**20:.1f} MiB. "
        f"Exported by kerasdet {metadata['kerasdet']} with TensorFlow {metadata['tensorflow']} and Keras "
        f"{metadata['keras']}.",
        "",
        "## Classes",
        "",
        *_classes(metadata),
        "",
        "## Preprocessing (inside)",
        "",
        f"{_resizing(rule)} (kernel {rule['kernel']}). Mean {_numbers(rule['mean'])}, standard deviation "
        f"{_numbers(rule['std'])}, channels {rule['channel_order']}; {_padding(rule)}. Encoded images of more than "
        f"{metadata['max_pixels']:,} pixels raise an error.",
        "",
        "## Signatures",
        "",
        "| signature | input | type | shape |",
        "|---|---|---|---|",
        *(_input_line(name, function) for name, function in signatures.items()),
        "",
        "All signatures have these outputs, float32 and padded to D detections. An empty batch gives empty outputs:",
        "",
        "| output | shape | |",
        "|---|---|---|",
        *(
            f"| `{name}` | {_shape(tensor)} | {meanings[name]} |"
            for name, tensor in sorted(signatures["serving_default"].structured_outputs.items())
        ),
    ]
    return "\n".join(lines)


_MEANINGS = {
    "detection_boxes": "ymin, xmin, ymax, xmax as fractions of the image's height and width",
    "detection_scores": "descending, 0 for padding",
    "detection_classes": "as in `label_map.pbtxt`",
    "num_detections": "number of detections that are not padding",
    "detection_masks": "probabilities inside the box: resize to the box's size and cut at 0.5",
    "detection_keypoints": "y and x as fractions of the image's height and width, and a score",
}
_MEANINGS_OF_WHOLE_MASKS = {  # RTMDet-Ins
    "detection_masks": "probabilities in the area of `detection_mask_boxes`: resize to its size and cut at 0.5",
    "detection_mask_boxes": "ymin, xmin, ymax, xmax of this area as fractions of the image's height and width",
}


def _resizing(rule):
    """Describes how images are resized, from the configuration of a `Preprocessing`."""
    if rule["rounding"] == "square":
        return f"The image is stretched to {rule['shortest']}x{rule['shortest']} pixels"
    return (
        f"The shorter side is resized to {rule['shortest']} pixels, or to fewer if the longer side would exceed "
        f"{rule['longest']}, with the rounding of {rule['rounding']}"
    )


def _padding(rule):
    if rule["letterbox_value"] is not None:
        return f"padding to a square with pixels of {rule['letterbox_value']:g}"
    return f"padding to a multiple of {rule['size_divisor']}"


def _classes(metadata):
    offset, names = metadata["class_offset"], metadata["class_names"]
    if not names:
        return [f"{metadata['num_classes']}, without names; `detection_classes` counts from {offset}."]
    return [f"{number}: {name}  " for number, name in enumerate(names, offset)]


def _numbers(values):
    return ", ".join(f"{value:g}" for value in values)


def _input_line(name, function):
    (spec,) = function.structured_input_signature[0] or function.structured_input_signature[1].values()
    return f"| `{name}` | `{spec.name}` | {spec.dtype.name} | {_shape(spec)} |"


def _shape(spec):
    return "(" + ", ".join("any" if size is None else str(size) for size in spec.shape) + ")"
