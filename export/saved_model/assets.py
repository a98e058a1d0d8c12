"""What lies beside the graph of a SavedModel: names of classes, what it is, and how to call it.

| file in ``assets/`` | |
|---|---|
| ``labels.txt`` | class names, one a line, in the order of class ids from 0 |
| ``label_map.pbtxt`` | the TF Object Detection API's label map; its ids are the values of ``detection_classes`` |
| ``model_card.md`` | model, classes, preprocessing, signatures and sizes, for people |
| ``kerasdet.json`` | the same for programs; `kerasdet.load` reads it |
| ``config.gin`` | the operative configuration of the training run, where there was one |
"""

import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import keras
import tensorflow as tf

from kerasdet.models import Detector

FACTS_FILE = "kerasdet.json"


def write_assets(
    model: Detector, path: Path, options: Mapping, signatures: Mapping, gin_config: str | None = None
) -> None:
    """Writes the folder ``assets`` of a SavedModel.

    Args:
        model: The detector.
        path: Of the SavedModel.
        options: Of the export, ``class_offset`` among them.
        signatures: Name -> concrete function.
        gin_config: Text of the configuration.
    """
    folder = path / "assets"
    folder.mkdir(exist_ok=True)
    facts = model_facts(model, options)
    _write(folder / FACTS_FILE, json.dumps(facts, indent=1))
    names = model.class_names
    if names:
        _write(folder / "labels.txt", "\n".join(names))
        _write(folder / "label_map.pbtxt", _label_map(names, options["class_offset"]))
    if gin_config:
        _write(folder / "config.gin", gin_config.strip())
    _write(folder / "model_card.md", _model_card(facts, path, signatures))


def _write(path, text):
    path.write_text(text + "\n", encoding="utf-8")


def model_facts(model: Detector, options: Mapping) -> dict:
    """What `kerasdet.load` needs to know of a model, and the options of its export."""
    return {
        "model": type(model).__name__,
        "num_classes": model.num_classes,
        "class_names": list(model.class_names) if model.class_names else None,
        "parameters": model.count_params(),
        "preprocessing": model.preprocessing.get_config(),
        "mask_convention": next(
            (branch.convention for branch in getattr(model, "branches", ()) if _has_masks(branch)), None
        ),
        **options,
        "kerasdet": metadata.version("kerasdet"),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }


def _has_masks(branch):
    return "mask_loss" in branch.loss_names


def _label_map(names, class_offset):
    items = [
        f"item {{\n  id: {number}\n  name: {json.dumps(name, ensure_ascii=False)}\n}}"
        for number, name in enumerate(names, class_offset)
    ]
    return "\n".join(items)


def _model_card(facts, path, signatures):
    weights = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    rule = facts["preprocessing"]
    lines = [
        f"# {facts['model']}",
        "",
        f"{facts['parameters']:,} parameters, network in {facts['precision']}, {weights / 2**20:.1f} MiB. Exported by "
        f"kerasdet {facts['kerasdet']} with TensorFlow {facts['tensorflow']} and Keras {facts['keras']}.",
        "",
        "## Classes",
        "",
        *_classes(facts),
        "",
        "## Preprocessing (inside)",
        "",
        f"The shorter side is resized to {rule['shortest']} pixels, unless the longer one would pass "
        f"{rule['longest']}; kernel {rule['kernel']}, rounding of {rule['rounding']}. Mean "
        f"{_numbers(rule['mean'])}, standard deviation {_numbers(rule['std'])}, channels {rule['channel_order']}; "
        f"padding to a multiple of {rule['size_divisor']}. Encoded images of more than {facts['max_pixels']:,} pixels "
        "are refused.",
        "",
        "## Signatures",
        "",
        "| signature | input | type | shape |",
        "|---|---|---|---|",
        *(_input_line(name, function) for name, function in signatures.items()),
        "",
        "Outputs of each, float32; D is padded, and an empty batch gives empty outputs:",
        "",
        "| output | shape | |",
        "|---|---|---|",
        *(
            f"| `{name}` | {_shape(tensor)} | {_MEANINGS[name]} |"
            for name, tensor in sorted(signatures["serving_default"].structured_outputs.items())
        ),
    ]
    return "\n".join(lines)


_MEANINGS = {
    "detection_boxes": "ymin, xmin, ymax, xmax as shares of the image's height and width",
    "detection_scores": "descending, 0 for padding",
    "detection_classes": "as in `label_map.pbtxt`",
    "num_detections": "how many are no padding",
    "detection_masks": "probabilities inside the box: resize to the box's size and cut at 0.5",
    "detection_keypoints": "y and x as shares of the image's height and width, and a score",
}


def _classes(facts):
    offset, names = facts["class_offset"], facts["class_names"]
    if not names:
        return [f"{facts['num_classes']}, without names; `detection_classes` counts from {offset}."]
    return [f"{number}: {name}  " for number, name in enumerate(names, offset)]


def _numbers(values):
    return ", ".join(f"{value:g}" for value in values)


def _input_line(name, function):
    (spec,) = function.structured_input_signature[0] or function.structured_input_signature[1].values()
    return f"| `{name}` | `{spec.name}` | {spec.dtype.name} | {_shape(spec)} |"


def _shape(spec):
    return "(" + ", ".join("any" if size is None else str(size) for size in spec.shape) + ")"
