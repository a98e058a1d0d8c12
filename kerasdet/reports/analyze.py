"""Builds the page about the detections of a model."""

import dataclasses
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from kerasdet.analysis import Analysis, analyze_cases, compare
from kerasdet.data.annotations import TYPE_NAMES
from kerasdet.data.dataset import Dataset
from kerasdet.errors import UserError
from kerasdet.evaluation.cases import Cases
from kerasdet.evaluation.metrics import KEYPOINT_SUMMARY
from kerasdet.inference.predictor import Predictor
from kerasdet.inference.preprocessing import KeepSize
from kerasdet.models.detector import is_detector
from kerasdet.paths import prepare_file
from kerasdet.reports import analysis_advice, analysis_curves, analysis_errors, analysis_images, fit, page
from kerasdet.reports import analysis_numbers as sections
from kerasdet.reports.analysis_images import OpenPicture
from kerasdet.reports.page import Column, Finding, Section, number
from kerasdet.reports.splits import join_splits

_ANALYSED = ("bbox", "segm")


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """Holds the detections of a model.

    Args:
        name: Name or path of the model, to be shown on the page.
        cases: Ground truth and detections of boxes, masks and keypoints, from `kerasdet.evaluation.cases.read_cases`.
        seconds: Seconds that each image took; empty if the detections come from a file.
        model: The model. None if the detections come from a file.
        dataset: Dataset on which the model ran. None if the detections come from a file.
        settings: Settings of the model's training, by name.
    """

    name: str
    cases: Sequence[Cases]
    seconds: Sequence[float] = ()
    model: Predictor | None = None
    dataset: Dataset | None = None
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)


def analyze_run(
    run: Run,
    out: str | os.PathLike,
    *,
    against: Run | None = None,
    open_picture: OpenPicture = lambda image_id: None,
    names: Mapping[int, str] | None = None,
    source: str = "",
) -> tuple[list[Finding], dict]:
    """Writes a self-contained HTML page about detections: what is wrong and what to do.

    Args:
        run: The detections to analyse.
        out: Path of the HTML file.
        against: Detections of another run on the same images, for a comparison. None: no comparison.
        open_picture: Function that takes an image id and returns the image (H, W, 3) uint8 RGB, or None if the file is
            missing. By default the page has no images.
        names: Maps image ids to file names. Images without a name are called by their ids.
        source: Origin of the data, for the line below the title.

    Returns:
        The findings at the top of the page, problems first, and all results as a dict of JSON values.

    Raises:
        UserError: If the runs and the ground truth share neither boxes nor masks, or vl-convert, which draws the
            charts, is not installed.
        OSError: If the page cannot be written.
    """
    out = prepare_file(out, "--out (Python: out=)")
    by_type = {cases.iou_type: cases for cases in run.cases}
    others = {} if against is None else {cases.iou_type: cases for cases in against.cases}
    parts, found, content = [], [], {}
    chosen = [name for name in _ANALYSED if name in by_type and (against is None or name in others)]
    for iou_type in chosen:
        cases = by_type[iou_type]
        analysis = analyze_cases(cases)
        other = None if against is None else analyze_cases(others[iou_type])
        result = None if other is None else compare(analysis, other)
        prefix = "" if iou_type == chosen[0] else f"{iou_type}-"
        advice = analysis_advice.advise(analysis, TYPE_NAMES[iou_type], result, scales=_scales(run, cases))
        found += [_moved(each, prefix, TYPE_NAMES[iou_type] if len(chosen) > 1 else "") for each in advice]
        made = _sections(run, against, analysis, other, result, cases, open_picture, names or {})
        parts += [
            dataclasses.replace(
                each,
                id=prefix + each.id,
                title=f"{each.title} ({TYPE_NAMES[iou_type]})" if len(chosen) > 1 else each.title,
            )
            for each in made
        ]
        content[iou_type] = analysis.content() | ({} if result is None else {"against": result.content()})
        if iou_type == chosen[0]:
            tiles = _tiles(analysis, run)
    if not parts:
        sources = ", ".join(each.name for each in (run, against) if each is not None)
        raise UserError(
            f"{sources} and the ground truth share neither boxes nor masks, so there is nothing to analyse; expected "
            "at least one of these. Save detections with 'bbox' or 'segmentation'."
        )
    anchors, of_anchors = _anchors(run)
    found[against is not None : against is not None] = of_anchors  # the finding about the comparison stays first
    parts += anchors + _further(run, content)
    found.sort(key=lambda finding: list(page.LEVELS).index(finding.level))
    title = f"Analysis of {Path(run.name).name or run.name}"
    subtitle = f"{run.name} on {source}" if source else run.name
    summary = Section("summary", "What to do", [page.tiles(tiles), page.findings(found)])
    page.write(out, title=title, subtitle=subtitle, sections=[summary, *parts])
    return found, content


def _sections(run, against, analysis: Analysis, other, result, cases, open_picture, names):
    words = TYPE_NAMES[cases.iou_type]
    labels = {image_id: names.get(image_id, f"image {image_id}") for image_id in analysis.image_ids}
    made = [
        None if result is None else sections.comparison(result, analysis, other, against.name, _changed(run, against)),
        analysis_errors.errors(analysis, words),
        analysis_errors.confused(analysis),
        analysis_images.images(analysis, cases, open_picture, labels, result),
        sections.numbers(analysis, words),
        sections.classes(analysis),
        analysis_curves.scores(analysis, "MODEL" if run.model is None else shlex.quote(run.name)),
        analysis_curves.reliability(analysis),
    ]
    return [each for each in made if each is not None]


def _changed(run, against):
    """Returns (name, before, now) of the settings that differ, except the folder of the run."""
    before, now = against.settings, run.settings
    if not before or not now:
        return []
    names = sorted((before.keys() | now.keys()) - {"OUT_DIR"})
    return [(name, before.get(name, "-"), now.get(name, "-")) for name in names if before.get(name) != now.get(name)]


def _scales(run, cases):
    """Returns the factor by which the model resizes each image, (I,), or None if it is unknown."""
    rule = getattr(run.model, "preprocessing", None)
    images = {image["id"]: image for image in cases.images}
    sizes = [(images[image_id]["height"], images[image_id]["width"]) for image_id in cases.image_ids]
    if rule is None or isinstance(rule, KeepSize) or any(None in size for size in sizes):
        return None
    if rule.rounding == "square":  # the square root of the factor of areas
        return np.array([rule.shortest / (height * width) ** 0.5 for height, width in sizes])
    return np.array([min(rule.shortest / min(size), rule.longest / max(size)) for size in sizes])


def _anchors(run):
    """Returns the section about the model's anchors, and its findings except those of level "good"."""
    if not is_detector(run.model) or run.dataset is None:
        return [], []
    section, found = fit.anchors(join_splits({"the evaluated images": run.dataset}), run.model, 0)
    return [] if section is None else [section], [each for each in found if each.level != "good"]


def _moved(finding, prefix, words):
    """Returns a finding whose link leads to the section of its kind, and whose text names the kind."""
    named = not words or finding.text.startswith(words.capitalize())
    text = finding.text if named else f"{words.capitalize()}: {finding.text}"
    return dataclasses.replace(finding, text=text, section=finding.section and prefix + finding.section)


def _tiles(analysis, run):
    ap, ap50 = analysis.numbers["AP"], analysis.numbers["AP50"]
    best = analysis.threshold
    values = [
        ("AP", sections.value(ap.value)),
        ("AP50", sections.value(ap50.value)),
        ("images", number(len(analysis.image_ids))),
        ("objects", number(int(analysis.positives[0].sum()))),
        ("detections", number(len(analysis.instances.scores))),
        ("best threshold", "-" if best is None else page.decimal(best.score)),
    ]
    if run.seconds:
        values.append(("median per image", f"{1000 * float(np.median(run.seconds)):.0f} ms"))
    return values


def _further(run, content):
    """Returns the sections about keypoints and speed, and adds their numbers to the content."""
    made = []
    for cases in run.cases:
        if cases.iou_type == "keypoints":
            metrics = cases.metrics()
            content["keypoints"] = metrics.content()
            rows = [(name, sections.value(metrics[name])) for name in KEYPOINT_SUMMARY]
            table = page.table([Column("Number"), Column("Value", "number")], rows, "Keypoints", sortable=False)
            made.append(Section("keypoints", "Keypoints", [table], "Measured by OKS."))
    if run.seconds:
        seconds = np.array(run.seconds) * 1000
        values = {"median_ms": float(np.median(seconds)), "p95_ms": float(np.quantile(seconds, 0.95))}
        content["latency"] = {**values, "images": len(seconds)}
        rows = [("median", f"{values['median_ms']:.1f} ms"), ("95 % are faster than", f"{values['p95_ms']:.1f} ms")]
        table = page.table([Column("Time of an image"), Column("Value", "number")], rows, "Speed", sortable=False)
        intro = (
            "Network and post-processing on this machine, one image at a time, without reading and resizing files. "
            "The first image of each size is not counted, because TensorFlow then traces the model."
        )
        made.append(Section("speed", "Speed", [table], intro))
    return made
