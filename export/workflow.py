"""An export from beginning to end: written, loaded again elsewhere, compared with the model, measured."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
from kerasdet.export import export_saved_model, export_tflite, verify_saved_model, verify_tflite
from kerasdet.export.saved_model.serving import next_version, warmup_protos, write_kit, write_warmup

from kerasdet.data import images as image_ops
from kerasdet.data import shapes
from kerasdet.data.pipeline import evaluation_batches
from kerasdet.evaluation import evaluate
from kerasdet.evaluation.evaluate import evaluate_batches
from kerasdet.loading import load
from kerasdet.models import Detector

_SAMPLE_SIZES = ((480, 640), (500, 333))
_WANTED = 20  # detections to compare where the model has none above its own threshold


def ship(
    model: Detector,
    path: str | Path,
    *,
    images: Sequence[str | Path] = (),
    class_offset: int = 1,
    **options,
) -> tuple[Path, str]:
    """Exports a SavedModel and shows that it is the model.

    Args:
        model: The detector.
        path: A folder that does not exist or is empty.
        images: Files to compare on; by default generated pictures.
        class_offset: See `export_saved_model`, as for the other `options`.

    Returns:
        The path, and what was found, for people.

    Raises:
        RuntimeError: If the SavedModel differs from the model.
    """
    how = {name: options[name] for name in ("precision", "ops") if name in options}

    def export_and_verify(model, path, samples):
        export_saved_model(model, path, class_offset=class_offset, **options)
        return verify_saved_model(model, path, samples, class_offset=class_offset, **how)

    path, samples = Path(path), _samples(images)
    try:
        lines = _compared(model, path, samples, export_and_verify, "TensorFlow")
    except RuntimeError:
        shutil.rmtree(path, ignore_errors=True)  # no folder is left that is not the model
        raise
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path, "\n".join([f"{path}: {size / 2**20:.1f} MiB, {how.get('precision', 'float32')}.", *lines])


def ship_tflite(
    model: Detector,
    path: str | Path,
    *,
    images: Sequence[str | Path] = (),
    representative: Sequence[str | Path] = (),
    **options,
) -> tuple[Path, str]:
    """Exports a TFLite file and shows that it is the model.

    Args:
        model: The detector.
        path: A file that does not exist.
        images: Files to compare on; by default generated pictures.
        representative: Image files, or folders of such, for the ranges of "int8".
        options: See `export_tflite`.

    Returns:
        The path, and what was found, for people.

    Raises:
        RuntimeError: If the file differs from the model.
    """
    if representative and options.get("precision") != "int8":
        raise ValueError("--representative images are for --precision int8 alone.")
    pictures = [image_ops.read(image) for image in _files(representative)]

    def export_and_verify(model, path, samples):
        return verify_tflite(model, export_tflite(model, path, images=pictures, **options), samples)

    path, samples = Path(path), _samples(images)
    try:
        lines = _compared(model, path, samples, export_and_verify, "LiteRT")
    except RuntimeError:
        path.unlink(missing_ok=True)  # no file is left that is not the model
        raise
    facts = load(path).facts
    head = (
        f"{path}: {path.stat().st_size / 2**20:.1f} MiB, {facts['precision']}, tail {facts['tail']}, input "
        f"{'x'.join(map(str, facts['size']))} {facts['input_type']}."
    )
    return path, "\n".join([head, *lines])


def _files(paths):
    """Image files; of a folder all that it holds but for what is hidden."""
    for path in map(Path, paths):
        visible = (file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        yield from sorted(visible) if path.is_dir() else [path]


def ship_version(model: Detector, folder: str | Path, **options) -> tuple[Path, str]:
    """`ship` as the next version in a folder for TF Serving, where it appears when it is complete.

    Args:
        model: The detector.
        folder: New, or of an earlier call.
        options: As of `ship`.
    """
    warmup_protos()  # before any work is done
    version = next_version(folder)
    version.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="partial_", dir=version.parent) as partial:
        path, report = ship(model, Path(partial) / "model", **options)
        write_warmup(path)
        path.rename(version)
    write_kit(folder)
    return version, report.replace(str(path), str(version))


def compare_ap(model: Detector, path: str | Path, data) -> str:
    """The AP of a model and of its artefact, as tables.

    Args:
        model: What was exported.
        path: The SavedModel or TFLite file.
        data: As for `kerasdet.evaluate`.
    """
    saved = load(path)
    ours = evaluate(model, data)
    theirs, _ = evaluate_batches(
        _InPixels(saved),
        evaluation_batches(data, 1, size_divisor=1),
        data.ground_truth,
        data.category_ids,
        [record.image_id for record in data.records],
    )
    return f"The model:\n{ours.table()}\nThe export:\n{theirs.table()}"


def sample_images() -> list[np.ndarray]:
    """Generated pictures of two sizes, uint8."""
    pictures = []
    for seed, size in enumerate(_SAMPLE_SIZES):
        with tempfile.TemporaryDirectory() as folder:
            shapes.write(folder, num_images=1, seed=seed, image_size=size, objects=(6, 6))
            pictures.append(image_ops.read(next(Path(folder).rglob("*.jpg"))))
    return pictures


def _samples(images):
    return [image_ops.read(image) for image in images] or sample_images()


def _compared(model, path, samples, export_and_verify, runtime):
    """What came of an export and its comparison, in lines."""
    report = export_and_verify(model, path, samples)
    lines = [f"Reloaded with {runtime} alone: {report}"]
    if not report.detections and hasattr(model, "score_threshold"):
        found = _verify_below_threshold(model, samples, export_and_verify)
        lines.append(f"The model finds nothing on these images. {found}")
    return lines


def _verify_below_threshold(model, samples, export_and_verify):
    """The comparison at a score threshold where there is something to compare: another export, which is not kept."""
    found = _with_threshold(model, 0.0).detect(samples[:1])
    scores = found["scores"][0, : found["valid"][0]][:_WANTED]
    if not len(scores):
        raise RuntimeError(
            f"{type(model).__name__} finds nothing on these images at any score, so there is nothing to compare: name "
            "other images with --verify, and see that the weights are finite."
        )
    threshold = 0.999 * float(scores.min())
    with tempfile.TemporaryDirectory() as folder:
        report = export_and_verify(_with_threshold(model, threshold), Path(folder) / "model.tflite", samples)
    return f"The same with a score threshold of {threshold:.2g}: {report}"


def _with_threshold(model, threshold):
    """A copy of the model."""
    config = keras.saving.serialize_keras_object(model)["config"]
    copy = type(model).from_config({**config, "score_threshold": threshold})
    for new, old in zip(copy.variables, model.variables, strict=True):
        new.assign(old)
    return copy


class _InPixels:
    """A loaded export for `evaluate_batches`, which gives it images in their own size."""

    def __init__(self, saved):
        self.paste_masks = saved.paste_masks
        self._saved = saved

    def predict_on_batch(self, batch):
        return self._saved.detect(np.asarray(batch["image"], np.uint8))
