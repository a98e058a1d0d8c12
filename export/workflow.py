"""Exports a model and verifies the export: writes it, runs it in another process, compares detections and AP."""

import dataclasses
import logging
import math
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kerasdet.data import images as image_files
from kerasdet.data import shapes
from kerasdet.data.image_files import list_images
from kerasdet.errors import UserError, VerificationError
from kerasdet.evaluation import evaluate
from kerasdet.export.checks import check_model
from kerasdet.export.formats import choose_spec, format_named, format_of
from kerasdet.export.verify import EIGHT_BITS, Report, Tolerance, compare, tolerance_for
from kerasdet.files import removing_on_failure
from kerasdet.inference.images import open_images
from kerasdet.models import Detector
from kerasdet.paths import expand

log = logging.getLogger(__name__)

MAX_AP_DROP = 0.02

# Sizes of the generated images; two, so that more than one shape is compared
_SAMPLE_SIZES = ((480, 640), (500, 333))
_CALIBRATED = 100  # largest number of calibration images: all are decoded into memory, and more hardly change ranges
_MOST_CALIBRATION_IMAGES = 4  # calibration images to compare if the user passed no verification images
_WANTED = 20  # number of detections to compare if the model has none above its own threshold
_RUNS = 3  # timed runs of the Keras model for each batch; the fastest counts, because the first one traces


def export_and_verify(
    model: Detector,
    path: str | Path,
    *,
    format: str | None = None,
    serving: bool = False,
    precision: str = "float32",
    verify_images: Sequence = (),
    calibration_images: Sequence = (),
    eval_data: Any = None,
    max_ap_drop: float = MAX_AP_DROP,
    gin_config: str | None = None,
    **options: Any,
) -> tuple[Path, str]:
    """Writes a detector in an export format and verifies that the export gives the same detections.

    The export runs in another process without kerasdet. Its detections are compared with the model's, see
    `kerasdet.export.verify`. If the export or the comparison fails, all written files are removed.

    Args:
        model: The detector.
        path: File or folder to write; it must not exist yet. With `serving`: the folder from which a server loads
            versions; it may exist.
        format: Name of a format: "saved_model", "onnx", "openvino" or "tflite". None: the format of the suffix of
            `path`, ".onnx" or ".tflite", otherwise "saved_model".
        serving: Whether to write the model as the next version in a folder for a model server.
        precision: Precision of the network: "float32", "bfloat16", "float16", "dynamic" or "int8". Each format supports
            some of these, see `kerasdet.export.spec.FormatSpec`.
        verify_images: Images for the comparison: arrays (H, W, 3), PIL images or paths. By default the first four
            calibration images, or generated images if there are none.
        calibration_images: Arrays (H, W, 3), PIL images, paths of image files or of folders of image files, on which
            "int8" measures the ranges of activations. Of more than 100 images, 100 are used, evenly spaced in the list.
            Pass none for other precisions.
        eval_data: Dataset on which the AP of model and export is measured, see `kerasdet.evaluate`. None: AP is not
            measured.
        max_ap_drop: Largest allowed loss of AP on `eval_data`, as a difference of AP in 0..1, for boxes, masks and
            keypoints; for a `ProposalNetwork`, of average recall. This is the most important check of 8-bit exports.
        gin_config: Operative gin configuration of the training run, which is stored in the export. None: no
            configuration.
        **options: Options of the format, such as `class_offset` of a SavedModel or `size` of a TFLite file.

    Returns:
        The path of the export, and a report as a string.

    Raises:
        TypeError: If the model is not a detector.
        UserError: If the format is unknown or does not fit the suffix of `path`, the format or the model does not
            support an option, or calibration images are missing or not used.
        OSError: If `path` exists or cannot be written, or the file of an image does not exist.
        VerificationError: If the export does not run, differs from the model, or loses too much AP.

    Example:
        >>> model = kerasdet.load("torchvision/retinanet_resnet50_fpn_v2")
        >>> path, report = export_and_verify(model, "published.onnx", size=(320, 320))
    """
    check_model(model)
    path = expand(path)
    format = choose_spec(path, format).name
    export_format = format_named(format)
    options = _check_options(export_format, precision, options)
    if "calibration_images" in export_format.options:
        options["calibration_images"] = _spread(list(_list_images(calibration_images)))
    elif len(calibration_images):
        raise UserError(
            f"Format {format} does not use calibration images: remove them, or use a format with precision int8, such "
            "as tflite."
        )
    if serving and export_format.new_version is None:
        raise UserError(
            f"Format {format} has no folder layout of a model server: remove --serving (Python: serving=), or use "
            "format saved_model or openvino."
        )
    images = read_images(verify_images)
    _say_other_sizes(model.preprocessing, options.get("size"))
    write_options = {"precision": precision, "gin_config": gin_config, **options}
    if not serving:
        log.info("Writing %s ...", path)
        return path, _export(model, path, export_format, write_options, images, eval_data, max_ap_drop)
    with export_format.new_version(path) as (partial, version):
        log.info("Writing %s ...", version)
        try:
            report = _export(model, partial, export_format, write_options, images, eval_data, max_ap_drop)
        except VerificationError as error:
            raise VerificationError(str(error).replace(str(partial), str(version))) from error
    return version, report.replace(str(partial), str(version))


def _say_other_sizes(preprocessing, size):
    """Logs a fixed input size that gives other resized images than the model's own rule."""
    is_same = preprocessing.rounding == "square" or (
        preprocessing.shortest == preprocessing.longest and tuple(size or ()) == (preprocessing.longest,) * 2
    )
    if size and not is_same:
        log.info(
            "The export resizes images to fit into %d x %d (height x width) and fills the rest. The model resizes the "
            "shorter side to %d pixels, the longer one to at most %d, so its detections differ. --eval DATA (Python: "
            "eval_data=) measures the AP of both.",
            *size,
            preprocessing.shortest,
            preprocessing.longest,
        )


def _check_options(export_format, precision, options):
    """Checks that the format supports all options, and returns a copy of the options."""
    if precision not in export_format.precisions:
        raise UserError(
            f"Format {export_format.name} has no precision {precision!r}: choose one of "
            f"{', '.join(export_format.precisions)}."
        )
    for name in options:
        if name not in export_format.options:
            known = ", ".join(export_format.options)
            remedy = f"its options are {known}" if known else "it has no further options, so remove it"
            raise UserError(f"Format {export_format.name} has no option {name!r}: {remedy}.")
    return dict(options)


def _export(model, path, export_format, write_options, images, eval_data, max_ap_drop):
    """Writes and verifies an export; returns the report as a string."""

    def write(model, path):
        export_format.write(model, path, **write_options)

    with removing_on_failure(path):
        write(model, path)
        few = write_options.get("calibration_images", [])[:_MOST_CALIBRATION_IMAGES]
        images = images or read_images(few) or sample_images()
        count = f"{len(images)} image{'s' if len(images) > 1 else ''}"
        log.info("Comparing the export with the model on %s, in a separate process ...", count)
        report = verify_export(model, path, images)
        lines = [_describe(path), f"Run by {export_format.runtime} alone: {report}"]
        if not report.detections:
            lines.append(_verify_below_threshold(model, write, path, images))
        if eval_data is not None:
            lines.append(compare_ap(model, path, eval_data, max_ap_drop))
        elif _tolerance(model, write_options["precision"]) is EIGHT_BITS:
            lines.append(
                "AP was not measured: pass --eval DATA (Python: eval_data=) to measure the loss of 8 bits, "
                f"and to reject an export that loses more than {max_ap_drop:g}."
            )
    return "\n".join(lines)


def verify_export(model: Detector, path: str | Path, images: Sequence) -> Report:
    """Runs an export in a separate process and compares its detections with those of the original model.

    Args:
        model: The detector.
        path: Path of the export.
        images: At least one image for the comparison: arrays (H, W, 3), PIL images or paths.

    Returns:
        The differences, all within the tolerance of the export's precision.

    Raises:
        UserError: If `path` is not an export, or an item of `images` is not an image.
        FileNotFoundError: If the file of an image does not exist.
        VerificationError: If the export does not run, or differs from the model.

    Example:
        >>> print(verify_export(model, "detector.tflite", ["street.jpg"]))
    """
    export_format = format_of(path)
    if export_format is None:
        raise UserError(f"{path} is not an export: pass a folder or file that `kerasdet export` wrote.")
    run = export_format.run_in_worker(model, Path(path), read_images(images))
    expected, seconds = {}, math.inf
    for batch, _ in run.cases:  # signatures share their batches
        if id(batch) not in expected:
            expected[id(batch)], fastest = _detect_timed(model, batch)
            seconds = min(seconds, fastest / len(batch["image_size"]))
    report = compare(
        [(expected[id(batch)], found) for batch, found in run.cases],
        _tolerance(model, _read_precision(path)),
        score_threshold=_score_threshold(model),
        branch_outputs=model.branch_outputs,
        subject=str(path),
    )
    return dataclasses.replace(
        report, milliseconds=1e3 * statistics.median(run.seconds), model_milliseconds=1e3 * seconds
    )


def _detect_timed(model: Detector, batch: Mapping) -> tuple[dict[str, np.ndarray], float]:
    """Runs the model on a batch several times, and returns its detections and the seconds of the fastest run."""
    seconds = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        detections = {name: value.numpy() for name, value in model.detect_batch(batch).items()}
        seconds.append(time.perf_counter() - start)
    return detections, min(seconds)


def _tolerance(model, precision) -> Tolerance:
    return tolerance_for(precision, model.backbone.compute_dtype)


def _score_threshold(model) -> float:
    """Returns the score threshold of the model's post-processing; 0 if it has none."""
    return getattr(model.postprocessing, "score_threshold", 0.0)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Reads the description of the model from an export of any format.

    Args:
        path: Path of the export.

    Returns:
        The description, a dict; see `kerasdet.export.metadata.model_metadata`.
    """
    return format_of(path).read_metadata(Path(path))


def _read_precision(path):
    """Returns the precision of an export, which the metadata of every format must contain."""
    export_format = format_of(path)
    metadata = export_format.read_metadata(Path(path))
    precision, known = metadata.get("precision"), export_format.precisions
    if precision not in known:
        raise VerificationError(
            f"The metadata of {path} has the precision {precision!r}, so its tolerance is unknown: expected one of "
            f"{', '.join(known)}. Let `write` of format {export_format.name} add it as 'precision'."
        )
    return precision


def _describe(path):
    """Returns a line about an export: its size and its main options."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    megabytes = sum(file.stat().st_size for file in files) / 2**20
    metadata = read_metadata(path)
    words = [f"{path}: {megabytes:.1f} MiB, {_read_precision(path)}"]
    if "postprocessing" in metadata:
        words.append(f"postprocessing {metadata['postprocessing']}")
    if "size" in metadata:
        words.append(f"input {'x'.join(map(str, metadata['size']))} {metadata['input_type']}")
    return ", ".join(words) + "."


def _verify_below_threshold(model, write, path, images):
    """Compares a temporary export with a score threshold at which the model detects objects."""
    has_threshold = hasattr(model.postprocessing, "score_threshold")
    results = map(with_score_threshold(model, 0.0).detect, images) if has_threshold else ()
    found = next(filter(len, results), ())  # of the first image with detections
    if not len(found):
        raise VerificationError(
            f"{type(model).__name__} finds nothing on the verification images at any score, so the export cannot be "
            "compared. Expected at least one detection. Pass images that contain objects (--verify-images; Python: "
            f"verify_images=), and check that the weights are finite."
        )
    # At a fixed input size the scores may be lower than those that `detect` found above, so 0 is tried as well.
    for threshold in (0.999 * float(found.scores[:_WANTED].min()), 0.0):
        sensitive = with_score_threshold(model, threshold)
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / path.name
            write(sensitive, copy)
            report = verify_export(sensitive, copy, images)
        if report.detections:
            return (
                f"The model finds nothing on the verification images. With a score threshold of {threshold:.2g}: "
                f"{report}"
            )
    raise VerificationError(
        f"The model detects nothing at the input size of {path}, so the export cannot be compared. Expected at least "
        "one detection. Choose a larger --size (Python: size=), or pass images that contain objects "
        f"(--verify-images; Python: verify_images=)."
    )


def with_score_threshold(model: Detector, score_threshold: float) -> Detector:
    """Copies a detector with another score threshold in all its parts, such as post-processing and proposal selection.

    Args:
        model: The detector, which is not changed.
        score_threshold: Detections with a score at or below this are dropped. In [0, 1].

    Returns:
        The copy of the detector, with its own weights.

    Raises:
        ValueError: If no part of the model has a score threshold.
    """
    config, replaced = _replace(
        keras.saving.serialize_keras_object(model)["config"], "score_threshold", score_threshold
    )
    if not replaced:
        raise ValueError(f"A {type(model).__name__} has no score threshold: expected a model with classes.")
    copy = type(model).from_config(config)
    for new, old in zip(copy.variables, model.variables, strict=True):
        new.assign(old)
    return copy


def _replace(config, name, value):
    """Sets an argument wherever it occurs in a serialised configuration; returns the copy and the number of places."""
    if isinstance(config, list | tuple):
        parts = [_replace(item, name, value) for item in config]
        return [part for part, _ in parts], sum(count for _, count in parts)
    if not isinstance(config, dict):
        return config, 0
    parts = {key: (value, 1) if key == name else _replace(item, name, value) for key, item in config.items()}
    return {key: part for key, (part, _) in parts.items()}, sum(count for _, count in parts.values())


def compare_ap(model: Detector, path: str | Path, data: Any, max_ap_drop: float = MAX_AP_DROP) -> str:
    """Measures the AP of a model and its export, and raises an error if the export loses too much.

    Args:
        model: The detector.
        path: Path of the export of this model.
        data: A dataset, see `kerasdet.evaluate`.
        max_ap_drop: Largest allowed loss of AP of boxes, masks or keypoints (of average recall for a
            `ProposalNetwork`), as a difference of AP in 0..1.

    Returns:
        A string with both tables and the loss of AP.

    Raises:
        VerificationError: If the export loses more than `max_ap_drop` of any AP.
    """
    ours, theirs = evaluate(model, data), evaluate(format_of(path).load(path), data)
    drops = {
        name: ours.summary[name] - theirs.summary[name]
        for name in ours.summary
        if name.rpartition("/")[2] in ("AP", "AR1000") and not math.isnan(ours.summary[name])  # NaN: no such objects
    }
    lost = {name: drop for name, drop in drops.items() if not drop <= max_ap_drop}
    if lost:
        name = max(lost, key=lost.get)
        raise VerificationError(
            f"{path} reaches {name} {theirs.summary[name]:.3f} on {data.annotations}, the model "
            f"{ours.summary[name]:.3f}: the export loses more than {max_ap_drop:g}. Choose a higher precision, more "
            "calibration images or a larger input, "
            "or increase --max-ap-drop (Python: max_ap_drop=)."
        )
    words = ", ".join(f"{name} {round(-drop, 3) + 0.0:+.3f}" for name, drop in drops.items())  # + 0.0: no "-0.000"
    return f"The model:\n{ours.table()}\nThe export ({words}):\n{theirs.table()}"


def read_images(images: Sequence) -> list[np.ndarray]:
    """Opens images as uint8 arrays.

    Args:
        images: Arrays (H, W, 3), PIL images or paths. The list may be empty.

    Returns:
        Arrays (H, W, 3) uint8 RGB. Floats are rounded, because the signature ``encoded`` of a SavedModel takes image
        files, which hold integers.

    Raises:
        UserError: If an item is not an image. The message names the index of the item.
        FileNotFoundError: If a file does not exist.
    """
    if not len(images):
        return []
    return [np.rint(image).astype(np.uint8) for image in open_images(list(images))[0]]


def sample_images() -> list[np.ndarray]:
    """Generates example images of two sizes with drawn shapes.

    Returns:
        Arrays (H, W, 3) uint8 RGB.
    """
    images = []
    for seed, size in enumerate(_SAMPLE_SIZES):
        with tempfile.TemporaryDirectory() as folder:
            shapes.write(folder, num_images=1, seed=seed, image_size=size, objects=(6, 6))
            images.append(image_files.read(next(Path(folder).rglob("*.jpg"))))
    return images


def _spread(images):
    """Returns the images, or `_CALIBRATED` of them, evenly spaced in the list."""
    if len(images) <= _CALIBRATED:
        return images
    log.info("Calibrating on %d of the %d images, evenly spaced in the list.", _CALIBRATED, len(images))
    return [images[i * len(images) // _CALIBRATED] for i in range(_CALIBRATED)]


def _list_images(images: Iterable) -> Iterator:
    """Yields the images; for a folder, the images in the folder."""
    for image in images:
        if isinstance(image, str | Path) and expand(image).is_dir():
            yield from list_images(expand(image))
        else:
            yield image
