"""Defines the protocol of an export format, which `kerasdet.export.workflow` and `kerasdet.load` use."""

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from kerasdet.errors import VerificationError
from kerasdet.export.spec import FormatSpec
from kerasdet.inference.predictor import Predictor


@dataclasses.dataclass(frozen=True)
class WorkerRun:
    """Holds the detections of an export that ran in a process without kerasdet.

    Args:
        cases: Pairs of a batch, as `Detector.detect_batch` takes it, and the export's padded detections for that batch:
            a dict of `boxes` (B, D, 4) yxyx in pixels of the original images, `scores` (B, D) and more, see
            `kerasdet.inference.padded`. The list has one pair for each image or, for a SavedModel, for each signature.
        seconds: Seconds that each repeated run on the first image took.

    Raises:
        VerificationError: If there are no cases or no seconds.
    """

    cases: Sequence[tuple[Mapping[str, tf.Tensor], Mapping[str, np.ndarray]]]
    seconds: Sequence[float]

    def __post_init__(self):
        if not len(self.cases) or not len(self.seconds):
            raise VerificationError(
                f"The WorkerRun has {len(self.cases)} cases and {len(self.seconds)} seconds: expected at least one of "
                "each. Correct the format's `run_in_worker`."
            )


@dataclasses.dataclass(frozen=True)
class Format:
    """Describes an export format. A folder of `export/` has one as `FORMAT` in its `format.py`.

    Args:
        spec: Name, suffix, precisions and options.
        runtime: Name of the software that runs a file without kerasdet, such as "LiteRT", for the report.
        write: `write(model, path, *, precision, gin_config, **options) -> path` writes a `Detector` to a path that does
            not exist yet. It checks its arguments before it writes anything, and raises a `UserError` for an invalid
            option or an `OSError` for an unusable path. It never overwrites files.
        load: `load(path) -> Predictor` opens a file or folder that `write` wrote. The predictor has `metadata`, the
            dict that `read_metadata` returns, and `preprocessing`, see `Predictor`. `kerasdet.export.metadata.describe`
            sets all other attributes. Verification does not call `load`.
        read_metadata: `read_metadata(path) -> dict` reads the description of the model and its export without loading
            the model. `kerasdet.export.metadata.model_metadata` makes the description. Its entry ``precision``, one of
            the format's precisions, determines how closely the export must agree with the model. The report of
            `export_and_verify` also prints ``postprocessing``, and ``size`` with ``input_type``, if they are present.
        run_in_worker: `run_in_worker(model, path, images) -> WorkerRun` runs the file on uint8 images (H, W, 3) in
            another process that can import only the runtime and not kerasdet, because users run exports without
            kerasdet. `run_worker` starts such a process. A format that only kerasdet can run, such as a Keras file of
            kerasdet's classes, is therefore not possible.
        new_version: `new_version(folder)` is a context manager for `--serving`: it yields the path to which the block
            must write, and the path of the export after the block. None if no server supports the format.
    """

    spec: FormatSpec
    runtime: str
    write: Callable[..., Path]
    load: Callable[[Path], Predictor]
    read_metadata: Callable[[Path], dict[str, Any]]
    run_in_worker: Callable[..., WorkerRun]
    new_version: Callable[[Path], AbstractContextManager[tuple[Path, Path]]] | None = None

    @property
    def name(self) -> str:
        """The format's name on the command line, such as "tflite"."""
        return self.spec.name

    @property
    def precisions(self) -> Sequence[str]:
        """Precisions that `write` supports, the default first."""
        return self.spec.precisions

    @property
    def options(self) -> dict[str, Any]:
        """The format's options with their defaults: keyword arguments of `write`."""
        return {option.name: option.default for option in self.spec.options}


def available_cores() -> int:
    """Returns the number of processor cores that this process may use."""
    # macOS and Windows lack this function
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_worker(script: Path, path: Path, folder: str, *arguments: str) -> dict[str, np.ndarray]:
    """Runs a worker script in a new process. Its working folder does not contain kerasdet.

    Args:
        script: Python file that takes the export, a folder and further arguments, and writes ``outputs.npz`` to the
            folder.
        path: Path of the export.
        folder: Folder with the script's inputs, which also becomes its working folder.
        *arguments: Further arguments.

    Returns:
        The arrays of ``outputs.npz``.

    Raises:
        VerificationError: If the script fails or writes nothing. The message contains the last line of its error.
    """
    run = subprocess.run(
        [sys.executable, "-c", script.read_text(), str(path.resolve()), folder, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,  # Python puts the working folder on sys.path, and kerasdet must not be importable from there
    )
    if run.returncode:
        lines = run.stderr.strip().splitlines() or [f"exit code {run.returncode}"]
        errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
        error = (errors or lines)[-1].rstrip(" .")
        raise VerificationError(f"{path} does not run in a new process: {error}. {_remedy(error, script)}")
    if not (Path(folder) / "outputs.npz").exists():
        raise VerificationError(
            f"{script} wrote no outputs.npz: expected the outputs of {path} in the folder that is its second argument. "
            "Correct the script."
        )
    with np.load(Path(folder) / "outputs.npz") as outputs:
        return dict(outputs)


def _remedy(error, script):
    """Returns a remedy for the error of a worker."""
    if re.search(r"No module named 'kerasdet['.]", error):
        return f"{script} must run where kerasdet is not installed: remove the imports of kerasdet from this script."
    if "'Kerasdet>" in error:
        return 'Make the graph with `InferenceGraph`, or inside `kerasdet.ops.implementation("tensorflow")`.'
    if "imported TensorFlow or kerasdet" in error:
        return f"Remove the code that imports them from {script}, or from the start-up files of {sys.executable}."
    if error.startswith(("ModuleNotFoundError", "ImportError")):
        return f"Install the missing package for {sys.executable}, then export the model again."
    return f"Compare the installed packages with kerasdet's requirements.txt; if they agree, correct {script}."
