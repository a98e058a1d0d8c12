"""Describes the ONNX export format for the command line, without importing TensorFlow."""

from pathlib import Path

from kerasdet.export.spec import CALIBRATION_IMAGES, INPUT_TYPE, FormatSpec, Option

PRECISIONS = ("float32", "float16", "int8")
POSTPROCESSING = ("raw", "nms")  # see `kerasdet.export.onnx.write`

OPTIONS = (
    Option(
        "postprocessing",
        "nms",
        "raw: outputs of the network; nms: detections (default nms)",
        choices=POSTPROCESSING,
    ),
    Option(
        "size",
        None,
        "fixed height and width of the input in pixels (default: any size and any number of images)",
        kind="count",
        nargs=2,
        metavar=("H", "W"),
    ),
    INPUT_TYPE,
    CALIBRATION_IMAGES,
)


def _recognizes(path: Path) -> bool:
    return path.suffix.lower() == ".onnx"


SPEC = FormatSpec(name="onnx", suffix=".onnx", precisions=PRECISIONS, recognizes=_recognizes, options=OPTIONS)
