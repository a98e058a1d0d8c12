"""Writes self-contained HTML pages about datasets and about detections.

`page` makes the HTML, `charts` the plots, `pictures` the images; `inspect` composes the page about a dataset of the
sections in `content`, `sizes`, `fit` and `duplicates`, and `analyze` that about detections of those in `analysis_*`.
Charts need the extra `kerasdet[report]`.
"""

from kerasdet.reports.analyze import Run, analyze_run
from kerasdet.reports.inspect import inspect_dataset

__all__ = ["Run", "analyze_run", "inspect_dataset"]
