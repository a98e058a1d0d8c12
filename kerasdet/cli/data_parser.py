"""Defines the options of ``kerasdet data``, without importing TensorFlow: usage errors are reported immediately."""

import argparse
import csv

from kerasdet.errors import UserError
from kerasdet.paths import expand_text

FORMATS = ("coco", "tfrecord", "voc", "yolo")


def add_data(commands: argparse._SubParsersAction) -> list[argparse.ArgumentParser]:
    """Adds the commands ``kerasdet data ...`` to the parser.

    Args:
        commands: Subparsers of ``kerasdet``.

    Returns:
        The parsers of the new commands.
    """
    data = commands.add_parser(
        "data",
        help="Check, convert and split datasets.",
        description="Check, convert and split datasets of any format: COCO, Pascal VOC, YOLO, LabelMe, VIA, TFRecord.",
        epilog="`kerasdet data COMMAND --help` lists the options of a command.",
    )
    actions = data.add_subparsers(dest="action", required=True, metavar="COMMAND")
    parsers = [_add_check(actions), _add_convert(actions), _add_split(actions)]
    for parser in parsers:
        parser.add_argument(
            "--strict", action="store_true", help="treat every value that would be repaired as an error"
        )
    return [data, *parsers]


def path_word(text: str) -> str:
    """Expands ~ and variables in an argument, which shells leave as they are in `@~/list.txt` and in quotes.

    Args:
        text: Path, glob, URL, name of published weights or ``@FILE``.

    Returns:
        The expanded text.

    Raises:
        argparse.ArgumentTypeError: If the text is empty, or names a variable that is not set.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("the path is empty: expected a file or folder, such as runs/first")
    at = text[: text.startswith("@")]
    try:
        return at + expand_text(text[len(at) :])
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _add(actions, name, description, example):
    return actions.add_parser(
        name,
        help=description,
        description=description,
        epilog=f"Example:\n  kerasdet data {name} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_check(actions):
    check = _add(
        actions,
        "check",
        "Report the contents and the errors of a dataset: annotations, image files, rare classes, near duplicates.",
        "downloads/my-data",
    )
    check.add_argument("data", type=path_word, metavar="DATA", help=_SOURCE_HELP)
    return check


def _add_convert(actions):
    convert = _add(
        actions,
        "convert",
        "Write a dataset with all its splits and a copy of its images in another format.",
        "downloads/labelme-folder data/cells --to coco",
    )
    _add_target(convert)
    convert.add_argument("--to", choices=FORMATS, required=True, help="format to write")
    return convert


def _add_split(actions):
    split = _add(
        actions,
        "split",
        "Split a dataset into parts with the same mix of classes; near duplicates stay in one part.",
        "downloads/my-data data/my-data --parts train=0.8,val=0.2",
    )
    _add_target(split)
    split.add_argument(
        "--parts", type=_shares, required=True, metavar="NAME=SHARE,...", help="shares that sum to 1: train=0.8,val=0.2"
    )
    split.add_argument("--to", choices=FORMATS, default="coco", help="format to write (default coco)")
    split.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the split (default 0)")
    return split


_SOURCE_HELP = "a folder, or the file that describes the dataset: data.yaml, COCO's JSON, one of several TFRecords"


def _add_target(parser):
    parser.add_argument("source", type=path_word, metavar="SOURCE", help=_SOURCE_HELP)
    parser.add_argument("target", type=path_word, metavar="TARGET", help="a new or empty folder to write to")
    parser.add_argument(
        "--classes",
        type=_classes,
        metavar="NAMES",
        help="classes to keep, in this order: cat,dog; or old=new,... to rename and merge classes, where old= leaves "
        "a class out; put double quotes around a name with a comma",
    )
    parser.add_argument(
        "--on-bad-image",
        choices=("error", "skip"),
        default="error",
        help="what to do if images are missing or damaged: stop (default) or leave them out",
    )


def _shares(text):
    shares = {}
    for item in text.split(","):
        name, _, share = item.partition("=")
        try:
            shares[name.strip()] = float(share)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{item!r} is not NAME=SHARE, such as train=0.8") from None
    if len(shares) < len(text.split(",")) or not all(name.replace("_", "").isalnum() for name in shares):
        raise argparse.ArgumentTypeError(
            f"{text!r} has a repeated or invalid part name: expected different names of letters, digits and _"
        )
    return shares


def _classes(text):
    """Reads `cat,dog` as a list, and `old=new,...` as a mapping; a name with a comma has double quotes around it."""
    items = [item.strip() for item in next(csv.reader([text], skipinitialspace=True))]
    if not any("=" in item for item in items):
        return items
    pairs = [item.partition("=") for item in items]
    if not all(equals for _, equals, _ in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} mixes names and old=new; use only one form")
    return {old.strip(): new.strip() or None for old, _, new in pairs}
