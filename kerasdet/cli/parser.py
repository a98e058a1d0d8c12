"""Defines the options of every command.

Neither this module nor `kerasdet.export.formats` imports TensorFlow, so `kerasdet --help` and usage errors respond
immediately.
"""

import argparse

import kerasdet
from kerasdet.cli.data_parser import add_data, path_word
from kerasdet.export.formats import default_spec, specs

_CLASSES_HELP = (
    ". If a .keras file uses Python classes of your own, the modules that a config.gin beside it imports are imported "
    "first; put the folder of these modules on PYTHONPATH"
)
_EXPORTED_FILES = ", ".join(spec.suffix for spec in specs() if spec.suffix)
_MODEL_HELP = (
    "the OUT_DIR of a training run (its last checkpoint is used), a folder of `kerasdet convert`, a .keras file, or "
    f"an export of `kerasdet export`: a folder or a file ({_EXPORTED_FILES}); or a name that `kerasdet zoo` lists"
    f"{_CLASSES_HELP}"
)
_TRAINED_HELP = (
    "the OUT_DIR of a training run (its last checkpoint is used), a folder of `kerasdet convert`, a .keras file, "
    "or a name that `kerasdet zoo` lists"
    f"{_CLASSES_HELP}"
)


def make_parser() -> argparse.ArgumentParser:
    """Builds the parser of the command line.

    Returns:
        The parser. The parsed options have `command`, the name of the command, `debug`, and the options of the command.
    """
    parser = argparse.ArgumentParser(
        prog="kerasdet",
        description="Object detection for TensorFlow and Keras 3.",
        epilog="`kerasdet COMMAND --help` lists the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"kerasdet {kerasdet.__version__}")
    _add_debug(parser, default=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    adders = (_add_train, _add_eval, _add_predict, _add_export, _add_convert, _add_inspect, _add_analyze, _add_zoo)
    parsers = [add(commands) for add in adders] + add_data(commands)
    for each in parsers:
        _add_debug(each, default=argparse.SUPPRESS)  # keeps --debug before the command
    return parser


def _add_debug(parser, default):
    parser.add_argument(
        "--debug", action="store_true", default=default, help="show the stack of every error and TensorFlow's own log"
    )


def _add_command(commands, name, description, *examples):
    lines = "\n".join(f"  kerasdet {name} {example}" for example in examples)
    return commands.add_parser(
        name,
        help=description,
        description=description,
        epilog=f"{'Examples' if len(examples) > 1 else 'Example'}:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_train(commands):
    train = _add_command(
        commands,
        "train",
        "Train the model of a gin configuration, or resume the run in its OUT_DIR.",
        "retinanet_r18_fpn_shapes --set STEPS=500 --set OUT_DIR=runs/first",
        "finetune --data downloads/roboflow-export --set CHECKPOINT=converted",
    )
    train.add_argument(
        "config", type=path_word, metavar="CONFIG", help="a gin file, the OUT_DIR of a run, or the name of a recipe"
    )
    _add_overrides(
        train, "override a macro (BATCH_SIZE=8) or an argument (ResNet.depth=101); may be repeated, the last value wins"
    )
    train.add_argument(
        "--data",
        type=path_word,
        metavar="DATA",
        help="train and evaluate on this dataset instead of the recipe's: a folder, or the file that describes it, in "
        "any format of docs/data.md. The dataset needs the splits train and val; NUM_CLASSES is set to its number of "
        "classes",
    )
    train.add_argument(
        "--workers",
        type=_count,
        metavar="N",
        help="train in N processes of this machine, which share the GPUs (default: in this process)",
    )
    return train


def _add_overrides(command, text):
    command.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="overrides", help=text)


def _add_eval(commands):
    evaluate = _add_command(
        commands,
        "eval",
        "Measure the COCO AP of a model, or of a file of detections, on a dataset.",
        "runs/first",
        "model.tflite --annotations data/val.json --json metrics.json",
    )
    evaluate.add_argument("model", nargs="?", type=path_word, metavar="MODEL", help=_MODEL_HELP)
    evaluate.add_argument(
        "--data",
        type=path_word,
        metavar="DATA",
        help="a dataset in any format of docs/data.md (default: the evaluation data of the model's own gin "
        "configuration)",
    )
    evaluate.add_argument(
        "--split", metavar="NAME", help="the split of --data (default: val, otherwise test, otherwise the only split)"
    )
    evaluate.add_argument("--annotations", type=path_word, metavar="FILE", help="COCO annotations, instead of --data")
    evaluate.add_argument(
        "--images",
        type=path_word,
        metavar="DIR",
        help="folder of the images of --annotations (default: found near the file, such as images/ next to it)",
    )
    evaluate.add_argument(
        "--detections", type=path_word, metavar="FILE", help="score this file of COCO results; no MODEL is needed"
    )
    evaluate.add_argument("--batch-size", type=_count, metavar="N", help="number of images in a batch (default 1)")
    evaluate.add_argument(
        "--tta",
        nargs="*",
        type=_count,
        metavar="SIZE",
        help="detect at several sizes of each image and of its mirror image, and merge the results. SIZE is the length "
        "of the shorter side in pixels (default: 0.75, 1 and 1.25 times the model's own)",
    )
    _add_tiles(evaluate)
    evaluate.add_argument(
        "--engine",
        choices=("hotcoco", "pycocotools"),
        help="the library that computes AP (default hotcoco). Both give the same numbers; pycocotools is the "
        "reference implementation, but far slower",
    )
    evaluate.add_argument(
        "--metrics",
        choices=("coco", "voc", "lvis", "open-images", "boundary"),
        default="coco",
        help="the scoring rules: COCO's (default), AP of Pascal VOC 2007 and 2012, LVIS' AP of rare, common and "
        "frequent classes, Open Images' AP with group boxes, or Boundary AP of masks",
    )
    evaluate.add_argument("--json", type=path_word, metavar="FILE", help="write the metrics as JSON")
    evaluate.add_argument(
        "--save-detections", type=path_word, metavar="FILE", help="write the detections in COCO's results format"
    )
    return evaluate


def _add_predict(commands):
    predict = _add_command(
        commands,
        "predict",
        "Detect objects in images and videos.",
        "runs/first photo.jpg --draw drawn",
        "runs/first street.mp4 --track --draw drawn",
        "runs/first aerial.jpg --tile 640 --draw drawn",
        "torchvision/retinanet_resnet50_fpn_v2 photo.jpg",
        "model.tflite 'data/*.jpg' more_photos/ @list.txt --json",
    )
    predict.add_argument("model", type=path_word, metavar="MODEL", help=_MODEL_HELP)
    predict.add_argument(
        "images",
        nargs="+",
        type=path_word,
        metavar="IMAGE",
        help="image files, folders of images, quoted globs such as 'data/*.jpg', or @FILE: a text file with one of "
        "these per line; video files, URLs of streams (rtsp://...), or the number of a camera, such as 0",
    )
    predict.add_argument(
        "--score-threshold",
        type=_fraction,
        default=0.3,
        metavar="S",
        help="drop detections with a score of S or less; S is in [0, 1] (default 0.3). The model's own threshold is "
        "applied first",
    )
    _add_tiles(predict)
    predict.add_argument(
        "--track", action="store_true", help="give each object of a video an id, which it keeps from frame to frame"
    )
    predict.add_argument("--max-frames", type=_count, metavar="N", help="end each video after N frames")
    predict.add_argument(
        "--draw",
        type=path_word,
        metavar="DIR",
        help="write a PNG of each image, and an MP4 file of each video, with its detections",
    )
    predict.add_argument("--crops", type=path_word, metavar="DIR", help="write a PNG of each object to DIR/CLASS/")
    predict.add_argument(
        "--coco",
        type=path_word,
        metavar="FILE",
        help="write the detections as a COCO dataset with scores, for labelling tools",
    )
    predict.add_argument("--json", action="store_true", help="print JSON instead of a table; boxes are y1, x1, y2, x2")
    return predict


def _add_tiles(command):
    command.add_argument(
        "--tile",
        type=_count,
        metavar="SIZE",
        help="find small objects in large images: detect on tiles of SIZE x SIZE pixels and on the whole image, and "
        "merge the detections",
    )
    command.add_argument(
        "--overlap",
        type=_fraction,
        metavar="X",
        help="overlap of neighbouring tiles as a fraction of SIZE (default 0.2). Objects no longer than the overlap "
        "lie completely inside a tile",
    )


def _add_export(commands):
    export = _add_command(
        commands,
        "export",
        "Export a model as a SavedModel, a TFLite file or another format, and compare the export with the model.",
        "runs/first served --serving",
        "runs/first model.tflite --precision int8 --calibration-images data/images",
    )
    export.usage = "kerasdet export MODEL OUT [OPTION ...]"  # after --verify-images, OUT would be an image
    export.add_argument("model", type=path_word, metavar="MODEL", help=_TRAINED_HELP)
    export.add_argument("out", type=path_word, metavar="OUT", help="the file or folder to write")
    suffixes = [f"{spec.name} if OUT ends in {spec.suffix}" for spec in specs() if spec.suffix]
    export.add_argument(
        "--format",
        choices=[spec.name for spec in specs()],
        help=f"export format (default: {', '.join(suffixes)}, otherwise {default_spec().name})",
    )
    precisions = "; ".join(f"{spec.name}: {', '.join(spec.precisions)}" for spec in specs())
    export.add_argument(
        "--precision",
        choices=tuple(dict.fromkeys(precision for spec in specs() for precision in spec.precisions)),
        help=f"precision of the network (default float32). {precisions}",
    )
    export.add_argument(
        "--verify-images",
        nargs="+",
        type=path_word,
        default=[],
        metavar="IMAGE",
        help="compare model and export on these images (default: four calibration images, else generated ones)",
    )
    export.add_argument(
        "--eval",
        type=path_word,
        metavar="DATA",
        help="compare the AP of model and export on this dataset in any format of docs/data.md, such as a file of COCO "
        "annotations (default: no AP)",
    )
    _add_split_and_images(export, "--eval")
    export.add_argument(
        "--max-ap-drop",
        type=_fraction,
        metavar="X",
        help="fail if the AP of the export on --eval is lower than that of the model by more than X, in [0, 1] "
        "(default 0.02)",
    )
    export.add_argument(
        "--serving",
        action="store_true",
        help="OUT is a folder for TF Serving, or with --format openvino for OpenVINO Model Server: write the model as "
        "its next version",
    )
    _add_format_options(export)
    return export


def _add_format_options(export):
    """Adds the options of the formats. An option of several formats appears once, with the choices and help of all."""
    kinds = {"text": str, "path": path_word, "int": int, "count": _count}
    groups, owners = {}, {}
    for spec in specs():
        for option in spec.options:
            owners.setdefault(option.name, []).append((spec.name, option))
    for name, found in owners.items():
        first = found[0][1]
        title = f"only for --format {' or '.join(owner for owner, _ in found)}"
        if title not in groups:
            groups[title] = export.add_argument_group(title)
        choices = [choice for _, option in found for choice in option.choices or ()]
        groups[title].add_argument(
            first.option,
            dest=name,
            type=kinds[first.kind],
            choices=tuple(dict.fromkeys(choices)) or None,
            nargs=first.nargs,
            metavar=first.metavar,
            help=_joined_help(found),
        )


def _joined_help(found):
    """Joins the help texts of an option that several formats have, pairs (format, option)."""
    formats = {}
    for owner, option in found:
        formats.setdefault(option.help, []).append(owner)
    if len(formats) == 1:
        return found[0][1].help
    return "; ".join(f"for {' and '.join(owners)}, {text}" for text, owners in formats.items())


def _add_split_and_images(command, data):
    """Adds the options that complete the option `data`, which names a dataset in any format."""
    command.add_argument(
        "--split", metavar="NAME", help=f"the split of {data} (default: val, otherwise test, otherwise the only split)"
    )
    command.add_argument(
        "--images",
        type=path_word,
        metavar="DIR",
        help=f"folder of the images if {data} is a COCO file (default: found near the file, such as images/ next to "
        "it)",
    )


def _add_convert(commands):
    convert = _add_command(
        commands,
        "convert",
        "Convert a checkpoint of torchvision, detectron2 or mmdetection to a Keras model.",
        "retinanet.pth --source torchvision/retinanet_resnet50_fpn --out converted",
    )
    convert.add_argument("file", type=path_word, metavar="FILE", help="a .pth, .pkl, .safetensors or .npz file")
    convert.add_argument(
        "--source",
        required=True,
        metavar="NAME",
        help="the framework's model, such as torchvision/retinanet_resnet50_fpn; an unknown NAME prints a list of all",
    )
    convert.add_argument(
        "--out",
        required=True,
        type=path_word,
        metavar="DIR",
        help="the folder to write model.keras to, or a .keras file",
    )
    convert.add_argument(
        "--num-classes",
        type=_count,
        metavar="K",
        help="number of classes for fine-tuning: the layers whose size depends on it get new random weights (default: "
        "the checkpoint's classes and weights)",
    )
    convert.add_argument(
        "--norm-epsilon",
        type=_fraction,
        metavar="E",
        help="epsilon of the backbone's norms (default: the epsilon of the published checkpoint)",
    )
    convert.add_argument(
        "--weights",
        metavar="NAME",
        help="the set of weights to use, an entry of FILE or a prefix of tensor names, such as model_ema. It is needed "
        "only if FILE holds several sets; the error message then lists their names",
    )
    convert.add_argument(
        "--labels",
        type=path_word,
        metavar="FILE",
        help="a text file with one class name per line; __background__ may come first",
    )
    convert.add_argument(
        "--reference-outputs",
        type=path_word,
        metavar="FILE",
        help="an .npz file with an image and the source framework's outputs for it; the model is written only if its "
        "outputs match",
    )
    return convert


def _add_inspect(commands):
    inspect = _add_command(
        commands,
        "inspect",
        "Write a page about a dataset: classes, sizes, problems, near duplicates, and how a recipe's anchors fit.",
        "data/bccd --out page.html",
        "data/bccd --config retinanet_r18_fpn_bccd --out page.html",
    )
    inspect.add_argument(
        "data",
        type=path_word,
        metavar="DATA",
        help="a dataset in any format of docs/data.md: a folder, or the file that describes it",
    )
    inspect.add_argument(
        "--config",
        type=path_word,
        metavar="RECIPE",
        help="a gin file, or the name of a recipe of kerasdet: its anchors, resize rule and augmentation are applied",
    )
    _add_overrides(inspect, "override a macro or an argument of the recipe, as for `kerasdet train`; may be repeated")
    inspect.add_argument("--out", required=True, type=path_word, metavar="FILE", help="the HTML file to write")
    return inspect


def _add_analyze(commands):
    analyze = _add_command(
        commands,
        "analyze",
        "Write a page about a model's detections: where AP is lost, thresholds, confusion, worst images, what to do.",
        "runs/first --out report.html",
        "detections.json --data data/val.json --out report.html",
        "runs/second --against runs/first --data data/bccd --out report.html",
    )
    analyze.add_argument(
        "model",
        type=path_word,
        metavar="MODEL_OR_DETECTIONS",
        help=f"a .json file in COCO's results format, or a model: {_MODEL_HELP}",
    )
    analyze.add_argument(
        "--data",
        type=path_word,
        metavar="DATA",
        help="a dataset in any format of docs/data.md, such as a file of COCO annotations (default: the evaluation "
        "data of the model's own gin configuration)",
    )
    _add_split_and_images(analyze, "--data")
    analyze.add_argument(
        "--against",
        type=path_word,
        metavar="MODEL_OR_DETECTIONS",
        help="an earlier model or its detections: the page shows what improved and what got worse",
    )
    analyze.add_argument("--out", required=True, type=path_word, metavar="FILE", help="the HTML file to write")
    analyze.add_argument("--json", type=path_word, metavar="FILE", help="also write all numbers as JSON")
    return analyze


def _add_zoo(commands):
    zoo = _add_command(
        commands,
        "zoo",
        "List the published weights that kerasdet downloads by name, wherever a command takes a MODEL or a "
        "CHECKPOINT. Files and models are kept in KERASDET_HOME (default: the user's cache folder). KERASDET_MIRROR "
        "is the URL of a server, or a folder, to download from instead of the publishers.",
        "retinanet",
        "--json",
    )
    zoo.add_argument("text", nargs="?", default="", metavar="TEXT", help="list only names that contain TEXT")
    zoo.add_argument("--json", action="store_true", help="print JSON instead of a table, with URLs and hashes")
    return zoo


def _count(text):
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def _fraction(text):
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value
