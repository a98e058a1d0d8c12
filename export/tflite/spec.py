"""Describes the TFLite export format for the command line, without importing TensorFlow."""

from pathlib import Path

from kerasdet.export.spec import CALIBRATION_IMAGES, INPUT_TYPE, FormatSpec, Option

PRECISIONS = ("float32", "float16", "dynamic", "int8")  # see `kerasdet.export.tflite.quantization`
POSTPROCESSING = ("raw", "postprocess", "nms")  # see `kerasdet.export.tflite.postprocessing`


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
        INPUT_TYPE,
        CALIBRATION_IMAGES,
    ),
)
