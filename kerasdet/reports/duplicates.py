"""Makes the section about images that look alike."""

from collections.abc import Callable

import numpy as np

from kerasdet.data.duplicates import find_pairs, fingerprints
from kerasdet.reports import page, pictures
from kerasdet.reports.page import Column, Finding, Section, count
from kerasdet.reports.splits import Splits

_MOST_PICTURES = 24  # pairs shown with pictures
_EDGE = 150


def duplicates(data: Splits, on_progress: Callable[[str, int, int], None]) -> tuple[Section, list[Finding]]:
    """Finds images that look alike, in one split and across splits."""
    paths = [record.path for dataset in data.datasets.values() for record in dataset.records]
    split_of = np.repeat(list(data.datasets), [len(dataset) for dataset in data.datasets.values()])
    prints = fingerprints(paths, lambda done: on_progress("comparing images", done, len(paths)))
    pairs = find_pairs(prints)
    across = split_of[pairs[:, 0]] != split_of[pairs[:, 1]]
    pairs = np.concatenate([pairs[across], pairs[~across]])
    leaks, inside = int(across.sum()), int((~across).sum())
    found = []
    if leaks:
        images = len(np.unique(pairs[:leaks][split_of[pairs[:leaks]] != data.training]))
        found.append(
            Finding(
                "problem",
                f"{count(images, 'image')} outside {data.training} {'looks' if images == 1 else 'look'} like an image "
                "of another split. AP will be higher than on new images.",
                "Keep images that look alike in one split; `kerasdet data split` does so.",
                "duplicates",
            )
        )
    if inside:
        found.append(
            Finding(
                "advice",
                f"{count(inside, 'pair')} of images in the same split {'looks' if inside == 1 else 'look'} alike.",
                "Check whether their annotations agree. Copies add nothing to training.",
                "duplicates",
            )
        )
    if not len(pairs):
        where = "No two images" if len(data.datasets) == 1 else "No two images, in a split or across splits,"
        section = Section("duplicates", "Near duplicates", [page.paragraph(f"{where} look alike.")])
        return section, [Finding("good", "No near duplicates were found.")]
    rows = []
    for number, (a, b) in enumerate(pairs[: page.MAX_ROWS].tolist()):
        images = [_image(paths[i], split_of[i], with_picture=number < _MOST_PICTURES) for i in (a, b)]
        rows.append((*images, "across splits" if split_of[a] != split_of[b] else "same split"))
    columns = [Column("First image"), Column("Second image"), Column("Where")]
    table = page.table(columns, rows, "Images that look alike", total=len(pairs), sortable=False, titled=False)
    intro = "Images with nearly the same content, such as copies and frames of a video. Pairs across splits come first."
    return Section("duplicates", "Near duplicates", [table], intro), found


def _image(path, split, with_picture):
    """Returns a cell with the name of an image, below its picture."""
    name = path.replace("\\", "/").rsplit("/", 1)[-1]
    uri = pictures.thumbnail(path, _EDGE) if with_picture else None
    picture = page.image(uri, f"Thumbnail of {name}") if uri else ""
    return page.Html(picture + page.text(f"{split}: {name}"))
