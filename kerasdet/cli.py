"""The command line: ``kerasdet train | eval | predict | export | convert``."""

import argparse
import json
import logging
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from kerasdet import config
from kerasdet.checkpoints import SOURCES, read, to_model, verify
from kerasdet.data import CocoDataset
from kerasdet.data import images as image_ops
from kerasdet.evaluation import evaluate_all, evaluate_with_results
from kerasdet.export import graph
from kerasdet.export.saved_model.write import MAX_PIXELS
from kerasdet.export.tflite import postprocessing as tails
from kerasdet.export.tflite import quantization
from kerasdet.export.tflite.write import INPUT_TYPES
from kerasdet.export.workflow import compare_ap, ship, ship_tflite, ship_version
from kerasdet.geometry import rle
from kerasdet.inference import AugmentedPredictor
from kerasdet.loading import load_detector
from kerasdet.models import Detector
from kerasdet.training import run_workers
from kerasdet.visualize import draw_boxes

_GIN = "\n  In call to configurable"
_EXAMPLE = "torchvision/retinanet_resnet50_fpn"


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; a user's mistake is one line on standard error and exit code 2."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("kerasdet").setLevel(logging.INFO)
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError, FloatingPointError, RuntimeError, tf.errors.OpError) as error:
        print(f"kerasdet {options.command}: {_sentence(error)}", file=sys.stderr)
        return 2
    except (TypeError, AttributeError) as error:
        where = re.search(rf"{_GIN} '(\w+)'", str(error))
        if not where:
            raise
        print(f"kerasdet {options.command}: in an argument of {where.group(1)}: {_sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"kerasdet {options.command}: interrupted", file=sys.stderr)
        return 130
    return 0


def _sentence(error):
    """The message of an error in one line, without what gin and TensorFlow say of their own insides."""
    text = str(error).split(_GIN)[0]
    if isinstance(error, tf.errors.OpError) and (reason := re.search(r"Iterator::\S+ (.*)", text)):
        text = reason.group(1)
    return " ".join(re.sub(r"\{\{.*?\}\}|\[Op:.*", "", text).split())


def _positive(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


def _parser():
    parser = argparse.ArgumentParser(prog="kerasdet", description="Object detection for TensorFlow and Keras 3.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, run, description):
        sub = commands.add_parser(name, help=description, description=description)
        sub.set_defaults(run=run)
        return sub

    train = command("train", _train, "Train what a gin file configures, or go on where it stopped.")
    train.add_argument("config", help="a gin file, or the name of one that ships with kerasdet")
    train.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="overrides", help="override")
    train.add_argument("--workers", type=_positive, metavar="N", help="in N processes of this machine")

    evaluate = command("eval", _eval, "COCO AP of a model on a data set, or of a file of detections.")
    evaluate.add_argument("model", nargs="?", help="a run directory or a .keras file")
    evaluate.add_argument("--annotations", help="COCO annotations; by default those of the run's configuration")
    evaluate.add_argument("--images", help="their folder; by default images/ beside the annotations")
    evaluate.add_argument("--detections", help="score this file of COCO results; no model is needed")
    evaluate.add_argument("--batch-size", type=_positive, default=1, metavar="N")
    evaluate.add_argument(
        "--tta",
        nargs="*",
        type=_positive,
        metavar="SIZE",
        help="look at each image in these lengths of its shorter side, and in the mirror; by default 0.75, 1 and 1.25 "
        "times the model's own",
    )
    evaluate.add_argument("--json", metavar="FILE", help="write the numbers as JSON")
    evaluate.add_argument("--save-detections", metavar="FILE", help="write the detections as COCO results")

    predict = command("predict", _predict, "Detect objects in images.")
    predict.add_argument("model", help="a run directory or a .keras file")
    predict.add_argument("images", nargs="+", metavar="IMAGE")
    predict.add_argument("--score", type=float, default=0.3, metavar="S", help="show scores from S on (default 0.3)")
    predict.add_argument("--draw", metavar="DIR", help="write pictures of the detections")
    predict.add_argument("--json", action="store_true", help="print JSON and no table")

    export = command("export", _export, "Write a model as a SavedModel or a TFLite file, and compare the two.")
    export.add_argument("model", help="a run directory or a .keras file")
    export.add_argument("out", help="the folder or .tflite file to write")
    export.add_argument("--format", choices=["saved_model", "tflite"], default="saved_model")
    precisions = list(dict.fromkeys([*graph.PRECISIONS, *quantization.PRECISIONS]))
    export.add_argument(
        "--precision",
        choices=precisions,
        default="float32",
        help=f"of the network (default float32); SavedModel: {', '.join(graph.PRECISIONS)}; TFLite: "
        f"{', '.join(quantization.PRECISIONS)}",
    )
    saved_model = export.add_argument_group("SavedModel")
    saved_model.add_argument(
        "--serving", action="store_true", help="write a folder for TF Serving, this being its next version"
    )
    saved_model.add_argument("--ops", choices=["tensorflow", "compiled"], help="(default tensorflow)")
    saved_model.add_argument("--class-offset", type=int, metavar="N", help="of the first class (default 1)")
    saved_model.add_argument("--max-pixels", type=_positive, metavar="N", help="of an encoded image")
    tflite = export.add_argument_group("TFLite")
    tflite.add_argument("--tail", choices=tails.TAILS, help="what follows the network (default nms)")
    tflite.add_argument(
        "--size", nargs=2, type=_positive, metavar=("H", "W"), help="of the input; by default by the resize rule"
    )
    tflite.add_argument("--input", choices=INPUT_TYPES, help="type of the pixels (default float32)")
    tflite.add_argument(
        "--representative", nargs="+", metavar="IMAGE", help="images or folders of images, for the ranges of int8"
    )
    export.add_argument("--verify", nargs="+", default=[], metavar="IMAGE", help="compare on these")
    export.add_argument("--eval", metavar="ANNOTATIONS", help="print the AP of both on this COCO data set")

    convert = command("convert", _convert, "Make a Keras model of a checkpoint of another framework.")
    convert.add_argument("file", help="a .pth, .pkl, .safetensors or .npz file")
    convert.add_argument("--source", required=True, choices=list(SOURCES), metavar="NAME", help="such as " + _EXAMPLE)
    convert.add_argument("--out", required=True, metavar="DIR", help="receives model.keras")
    convert.add_argument("--num-classes", type=_positive, metavar="K", help="a new classification layer for K classes")
    convert.add_argument("--norm-epsilon", type=float, metavar="E", help="of the backbone, if not as published")
    convert.add_argument("--labels", metavar="FILE", help="class names, one a line")
    convert.add_argument("--verify", metavar="OUTPUTS.npz", help="compare with outputs of the source framework")
    return parser


def _train(options):
    config.load(options.config, options.overrides)
    if options.workers is None:
        config.train()
        return
    overrides = [word for override in (*options.overrides, "STRATEGY=multi_worker") for word in ("--set", override)]
    command = [sys.executable, "-m", "kerasdet.cli", "train", options.config, *overrides]
    if code := run_workers(command, options.workers, len(tf.config.list_physical_devices("GPU"))):
        raise SystemExit(code)


def _eval(options):
    if options.detections:
        if not options.annotations:
            raise ValueError("--detections needs --annotations, the ground truth to score against.")
        metrics, results = evaluate_all(options.annotations, options.detections), None
    elif not options.model:
        raise ValueError("name a model, or --detections.")
    else:
        metrics, results = _eval_model(options)
    print(metrics.table())
    if options.json:
        Path(options.json).write_text(metrics.to_json())
    if options.save_detections and results is not None:
        Path(options.save_detections).write_text(json.dumps(results))


def _eval_model(options):
    if options.annotations:
        data = CocoDataset(options.annotations, options.images)
    else:
        saved = Path(options.model) / "config.gin"
        if not saved.is_file():
            raise ValueError(f"{options.model} has no config.gin: name a data set with --annotations.")
        config.load(saved)
        data = config.eval_data()
    model = _open(options.model)
    if options.tta is not None:
        model = AugmentedPredictor(model, options.tta)
    return evaluate_with_results(model, data, batch_size=options.batch_size)


def _open(path):
    """A detector, and first the modules that its run's configuration names."""
    saved = Path(path) / "config.gin"
    if saved.is_file():
        config.import_modules(saved)
    return load_detector(path)


def _predict(options):
    model = _open(options.model)
    stems = [Path(path).stem for path in options.images]
    entries = []
    for number, (path, stem) in enumerate(zip(options.images, stems, strict=True)):
        try:
            image = image_ops.read(path)
        except (OSError, ValueError) as error:
            entries.append({"image": path, "error": _sentence(error)})
            continue
        entries.append({"image": path, "detections": _detections(model, image, options.score)})
        if options.draw:
            name = stem if stems.count(stem) == 1 else f"{number:03d}_{stem}"
            _draw(image, entries[-1]["detections"], _skeleton(model), Path(options.draw) / f"{name}.png")
    errors = [entry["error"] for entry in entries if "error" in entry]
    if options.json:
        print(json.dumps(entries, indent=1))
    elif len(errors) < len(entries):
        _print(entries)
    if errors:
        raise ValueError(f"{len(errors)} of {len(entries)} images could not be read: {errors[0]}")


def _print(entries):
    for entry in entries:
        found = entry.get("detections", [])
        print(f"{entry['image']}: {'not read' if 'error' in entry else f'{len(found)} objects'}")
        for d in found:
            y1, x1, y2, x2 = d["box"]
            print(f"  {d['label']:<20} {d['score']:.3f}   y {y1:7.1f} to {y2:7.1f}   x {x1:7.1f} to {x2:7.1f}")


def _detections(model, image, min_score):
    """The detections in one image as plain records: label, class_id, score, box (yxyx pixels).

    Where the model finds them also keypoints, each (y, x, score), and segmentation, COCO's compressed RLE.
    """
    result = model.detect(image)
    records = []
    for index in range(result["valid"][0]):
        score, class_id = float(result["scores"][0, index]), int(result["class_ids"][0, index])
        if score >= min_score:
            label = model.class_names[class_id] if model.class_names else str(class_id)
            box = [round(float(v), 3) for v in result["boxes"][0, index]]
            record = {"label": label, "class_id": class_id, "score": round(score, 5), "box": box}
            if "keypoints" in result:
                record["keypoints"] = np.round(result["keypoints"][0, index].astype(float), 3).tolist()
            if "mask_probs" in result:
                part = slice(index, index + 1)
                mask = model.paste_masks(result["mask_probs"][0, part], result["boxes"][0, part], *image.shape[:2])
                [record["segmentation"]] = rle.encode(mask)
            records.append(record)
    return records


def _skeleton(model):
    """The bones of the model's keypoints."""
    return next((branch.skeleton for branch in model.branches if hasattr(branch, "skeleton")), ())


def _draw(image, detections, skeleton, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    masks = [d["segmentation"] for d in detections if "segmentation" in d]
    keypoints = [d["keypoints"] for d in detections if "keypoints" in d]
    picture = draw_boxes(
        image,
        np.array([d["box"] for d in detections], np.float32).reshape(-1, 4),
        labels=[d["label"] for d in detections],
        scores=np.array([d["score"] for d in detections]),
        class_ids=np.array([d["class_id"] for d in detections], int),
        masks=rle.decode(masks) if masks else None,
        keypoints=np.array(keypoints) if keypoints else None,
        skeleton=skeleton,
        scale=2 if max(image.shape) < 400 else 1,
    )
    Image.fromarray(picture).save(path)


def _convert(options):
    model = to_model(
        read(options.file), options.source, num_classes=options.num_classes, norm_epsilon=options.norm_epsilon
    )
    detector = isinstance(model, Detector)
    if not detector and (options.labels or options.num_classes or options.verify):
        raise ValueError(f"{options.source} is a backbone: it has no classes and no detections to compare.")
    if options.labels:
        model.class_names = tuple(Path(options.labels).read_text().split("\n")[: model.num_classes])
    if options.verify:
        _verify(model, options)
    out = Path(options.out) / "model.keras"
    out.parent.mkdir(parents=True, exist_ok=True)
    model.save(out)
    print(f"{out}: {model.count_params():,} parameters of {options.source}.")


def _read_outputs(path):
    try:
        with np.load(path) as outputs:
            return dict(outputs)
    except (TypeError, AttributeError, zipfile.BadZipFile, EOFError, ValueError) as error:
        raise ValueError(f"{path} is no .npz file of arrays: {error}") from None


def _verify(model, options):
    report = verify(model, _read_outputs(options.verify), options.source)
    for name, difference, same in report:
        print(f"{name:<14} {difference:.2e}{'' if same else '   differs'}")
    different = [name for name, _, same in report if not same]
    if different:
        raise ValueError(f"{options.file} gives another {different[0]} than {options.verify}: nothing was written.")


_ONLY_SAVED_MODEL = {"class_offset": 1, "max_pixels": MAX_PIXELS, "ops": "tensorflow"}
_ONLY_TFLITE = {"tail": "nms", "size": None, "input": "float32", "representative": ()}


def _export(options):
    saved = Path(options.model) / "config.gin"
    tflite = options.format == "tflite"
    own, other = (_ONLY_TFLITE, _ONLY_SAVED_MODEL) if tflite else (_ONLY_SAVED_MODEL, _ONLY_TFLITE)
    given = {name: value for name, value in vars(options).items() if value is not None and value is not False}
    if wrong := [name for name in (*other, *["serving"] * tflite) if name in given]:
        raise ValueError(f"--format {options.format} has no --{wrong[0].replace('_', '-')}.")
    own = {name: given.get(name, default) for name, default in own.items()}
    if tflite:
        own["input_type"] = own.pop("input")
    data = CocoDataset(options.eval) if options.eval else None
    model = _open(options.model)
    export = ship_tflite if tflite else ship_version if options.serving else ship
    out, report = export(
        model,
        options.out,
        images=options.verify,
        precision=options.precision,
        gin_config=saved.read_text() if saved.is_file() else None,
        **own,
    )
    print(report)
    if data:
        print(compare_ap(model, out, data))


if __name__ == "__main__":
    sys.exit(main())
