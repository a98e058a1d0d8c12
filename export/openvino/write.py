"""Writes OpenVINO's IR: a folder with ``model.xml`` and ``model.bin``, converted from an ONNX model in memory.

Input and outputs are those of `kerasdet.export.onnx.write`. The ``rt_info`` of ``model.xml`` holds, under ``kerasdet``,
the entries that an ONNX file has in its metadata.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kerasdet.errors import UserError
from kerasdet.export.onnx.write import onnx_model
from kerasdet.export.openvino.spec import MODEL_FILE
from kerasdet.models import Detector
from kerasdet.paths import expand, make_folder


def export_openvino(
    model: Detector,
    path: str | Path,
    *,
    postprocessing: str = "nms",
    precision: str = "float32",
    size: tuple[int, int] | None = None,
    input_type: str = "float32",
    calibration_images: Sequence[np.ndarray | str | Path] = (),
    gin_config: str | None = None,
) -> Path:
    """Writes a detector as OpenVINO IR.

    Args:
        model: The detector.
        path: Path of a new or empty folder.
        postprocessing: "nms" for detections, "raw" for the outputs of the heads.
        precision: "float32"; "float16" for weights and arithmetic of the network in float16, which OpenVINO computes in
            float32 on processors without float16; "int8" for convolutions in 8 bits, see
            `kerasdet.export.onnx.quantization`.
        size: Height and width of the input in pixels, for a single image. None: any number of images of any size.
        input_type: Dtype of the input's pixels, "float32" or "uint8".
        calibration_images: A few dozen images that are typical for the model, as arrays (H, W, 3), PIL images or paths.
            "int8" needs these images to determine the ranges of activations.
        gin_config: Operative gin configuration of the training run, which is stored in the export. None: no
            configuration.

    Returns:
        The path of the folder.

    Raises:
        FileExistsError: If `path` is a file or a folder that is not empty.
        OSError: If `path` cannot be written, or the file of a calibration image does not exist.
        TypeError: If `model` is not a detector.
        UserError: If an option is unknown or the model does not support it, "int8" lacks calibration
            images, a package is missing, or the export does not support an op of the model.

    Example:
        >>> export_openvino(model, "detector")
        >>> detections = kerasdet.load("detector").detect("street.jpg")
    """
    path = expand(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is not empty: export to another folder, or delete this one.")
    make_folder(path.parent, "The export")
    try:
        import openvino
    except ImportError:
        raise UserError(
            "openvino is not installed, but the export needs it: pip install 'kerasdet[openvino]'."
        ) from None
    source = onnx_model(
        model,
        postprocessing=postprocessing,
        precision=precision,
        size=size,
        input_type=input_type,
        calibration_images=calibration_images,
        gin_config=gin_config,
        name="OpenVINO",
    )
    converted = openvino.convert_model(io.BytesIO(source.SerializeToString()))
    for entry in source.metadata_props:
        converted.set_rt_info(entry.value, ["kerasdet", entry.key])
    path.mkdir(exist_ok=True)
    # OpenVINO's own compression skips ops on which a shape depends. In models with masks or keypoints the number of
    # regions depends on the detections, so these models would stay in float32. The graph already has 16-bit weights.
    openvino.save_model(converted, path / MODEL_FILE, compress_to_fp16=False)
    return path
