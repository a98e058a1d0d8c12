"""Writes self-contained HTML pages about datasets and models.

`page` makes the HTML, `charts` the plots, `pictures` the images; `inspect` composes the page about a dataset of the
sections in `content`, `sizes`, `fit` and `duplicates`. Charts need the extra `kerasdet[report]`.
"""

from kerasdet.reports.inspect import inspect_dataset

__all__ = ["inspect_dataset"]
