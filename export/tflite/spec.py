"""Describes the TFLite export format for the command line, without importing TensorFlow."""

from pathlib import Path

from kerasdet.export.spec import FormatSpec, Option

PRECISIONS = ("float32", "float16", "dynamic", "int8")  # see `kerasdet.export.tflite.quantization`
POSTPROCESSING = ("raw", "postprocess", "nms")  # see `kerasdet.export.tflite.postprocessing`
INPUT_TYPES = ("float32", "uint8")


def _recognizes(path: Path) -> bool:
    return path.suffix.lower() == ".tflite"


SPEC = FormatSpec(
    name="tflite",
    suffix=".tflite",
    precisions=PRECISIONS,
    recognizes=_recognizes,
    options=(
        Option(
            "postprocessing",
            "nms",
            "raw: outputs of the network; postprocess: the custom op TFLite_Detection_PostProcess; nms: built-in "
            "operations (default nms)",
            choices=POSTPROCESSING,
        ),
        Option(
            "size",
            None,
            "height and width of the input in pixels (default: the shortest and longest edge of the model's resize "
            "rule, with a width of at most 5/3 of the height)",
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
    ),
)
