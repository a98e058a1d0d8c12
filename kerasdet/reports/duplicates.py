"""Builds the section about images that look alike."""

import numpy as np

from kerasdet.data.duplicates import fingerprints, near_duplicates
from kerasdet.data.records import Record
from kerasdet.reports import page, pictures
from kerasdet.reports.page import Column, Finding, Section, count
from kerasdet.reports.splits import Splits

_MOST_GROUPS = 24  # maximum number of groups that are shown with pictures
_MOST_IMAGES = 4  # maximum number of images that are shown of a group
_EDGE = 150


def duplicates(data: Splits) -> tuple[Section, list[Finding]]:
    """Shows near duplicates: images that look alike, in one split and across splits.

    Args:
        data: Splits of the dataset.

    Returns:
        The section of the page, and its findings.
    """
    records = [record for dataset in data.datasets.values() for record in dataset.records]
    split_of = np.repeat(list(data.datasets), [len(dataset) for dataset in data.datasets.values()])
    groups = near_duplicates(fingerprints(records))
    across = [group for group in groups if len(set(split_of[group])) > 1]
    inside = [group for group in groups if len(set(split_of[group])) == 1]
    if not groups:
        where = "No two images" if len(data.datasets) == 1 else "No two images, in a split or across splits,"
        section = Section("duplicates", "Near duplicates", [page.paragraph(f"{where} look alike.")])
        return section, [Finding("good", "No near duplicates were found.")]
    rows = []
    for place, group in enumerate(across + inside):
        with_pictures = place < _MOST_GROUPS
        shown = [_image(records[i], split_of[i], with_pictures) for i in group[:_MOST_IMAGES]]
        more = f" and {len(group) - _MOST_IMAGES} more" if len(group) > _MOST_IMAGES else ""
        splits = " and ".join(dict.fromkeys(split_of[group]))
        rows.append((page.Html(f'<div class="alike">{"".join(shown)}</div>{more}'), splits, page.number(len(group))))
        if len(rows) == page.MAX_ROWS:
            break
    columns = [Column("Images"), Column("In"), Column("Number", "number")]
    table = page.table(columns, rows, "Images that look alike", total=len(groups), sortable=False, titled=False)
    intro = (
        "Images with nearly the same content, such as copies and frames of a video. Groups across splits come first."
    )
    return Section("duplicates", "Near duplicates", [table], intro), _findings(data, split_of, across, inside)


def _findings(data, split_of, across, inside):
    found = []
    if across:
        images = sum(int((split_of[group] != data.training).sum()) for group in across)
        found.append(
            Finding(
                "problem",
                f"{count(images, 'image')} outside {data.training} {'looks' if images == 1 else 'look'} like an image "
                "of another split. AP will be higher than on new images.",
                "Keep images that look alike in one split, as `kerasdet data split` does.",
                "duplicates",
            )
        )
    if inside:
        images = sum(map(len, inside))
        found.append(
            Finding(
                "advice",
                f"{count(images, 'image')} look like another image of the same split.",
                "Check whether their annotations agree. Copies add nothing to training.",
                "duplicates",
            )
        )
    return found


def _image(record: Record, split: str, with_picture: bool) -> page.Html:
    """Returns the name of an image, below its picture."""
    name = record.path.replace("\\", "/").rsplit("/", 1)[-1]
    picture = page.image(pictures.thumbnail(record, _EDGE), f"Thumbnail of {name}") if with_picture else ""
    return page.Html(f"<div>{picture}{page.text(f'{split}: {name}')}</div>")
