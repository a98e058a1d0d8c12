"""Describes the ONNX export format for the command line, without importing TensorFlow."""

from pathlib import Path

from kerasdet.export.spec import FormatSpec, Option

PRECISIONS = ("float32", "float16", "int8")
POSTPROCESSING = ("raw", "nms")  # see `kerasdet.export.onnx.write`
INPUT_TYPES = ("float32", "uint8")

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
    Option(
        "input_type",
        "float32",
        "type of the input's pixels (default float32)",
        choices=INPUT_TYPES,
        flag="--input",
    ),
    Option(
        "calibration_images",
        (),
        "a few dozen typical images, or folders of images, on which --precision int8 measures ranges of values",
        kind="path",
        nargs="+",
        metavar="IMAGE",
    ),
)


def _recognizes(path: Path) -> bool:
    return path.suffix.lower() == ".onnx"


SPEC = FormatSpec(name="onnx", suffix=".onnx", precisions=PRECISIONS, recognizes=_recognizes, options=OPTIONS)
