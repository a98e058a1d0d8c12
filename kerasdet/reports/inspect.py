"""Builds the page about a dataset."""

import os
from collections.abc import Mapping, Sequence

from kerasdet.data.dataset import Dataset
from kerasdet.data.pipeline import Transform
from kerasdet.errors import UserError
from kerasdet.models.detector import Detector
from kerasdet.paths import prepare_file
from kerasdet.reports import content, duplicates, fit, page, sizes
from kerasdet.reports.page import Finding, Section
from kerasdet.reports.splits import join_splits

SAMPLES = 24


def inspect_dataset(
    splits: Mapping[str, Dataset],
    out: str | os.PathLike,
    *,
    title: str = "Dataset",
    source: str = "",
    model: Detector | None = None,
    transforms: Sequence[Transform] = (),
    seed: int = 0,
) -> list[Finding]:
    """Writes a self-contained HTML page about a dataset, and about how a model's anchors fit its objects.

    All counts are exact. The matcher of the model runs on up to `kerasdet.reports.fit.MOST_IMAGES` images, and samples
    and duplicates are shown as pictures up to a limit, so the page stays small for any dataset.

    Args:
        splits: Datasets by the name of their split; the first dataset is the training data.
        out: Path of the HTML file.
        title: Title of the page.
        source: Origin of the data, such as the path and the recipe, for the line below the title.
        model: Detector whose anchors, matcher and resize rule are compared with the objects. None: no comparison.
        transforms: Training transforms that are applied to the samples.
        seed: Seed of the samples and of the choice of images.

    Returns:
        The findings at the top of the page, problems first.

    Raises:
        UserError: If a split has no usable images, or vl-convert, which draws the charts, is not installed.
        OSError: If the page cannot be written.

    Example:
        >>> splits = {"train": CocoDataset("data/train.json"), "val": CocoDataset("data/val.json")}
        >>> for finding in inspect_dataset(splits, "page.html", model=kerasdet.RetinaNet(num_classes=3)):
        ...     print(finding.level, finding.text, finding.action)
    """
    for name, dataset in splits.items():
        if not dataset.records:
            raise UserError(
                f"The split {name} ({dataset.annotations}) has no usable image; expected at least one. Check the image "
                "folder and the annotations."
            )
    out = prepare_file(out, "--out (Python: out=)")
    data = join_splits(splits)
    parts = [
        content.overview(data),
        content.classes(data, model),
        sizes.sizes(data, model),
        fit.anchors(data, model, seed),
        content.problems(data),
        duplicates.duplicates(data),
        content.samples(data, transforms, SAMPLES, seed),
    ]
    sections = [section for section, _ in parts if section is not None]
    found = [finding for _, findings in parts for finding in findings]
    found.sort(key=lambda finding: list(page.LEVELS).index(finding.level))
    if all(finding.level == "good" for finding in found):
        found.append(Finding("good", "Nothing here needs a change before training."))
    summary = Section("summary", "Summary", [content.tiles(data), page.findings(found)])
    page.write(out, title=title, subtitle=source, sections=[summary, *sections])
    return found
