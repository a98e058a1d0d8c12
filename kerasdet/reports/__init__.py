"""Writes self-contained HTML pages about datasets and about detections.

`page` builds the HTML, `charts` the plots, `pictures` the images. `inspect` composes the page about a dataset from the
sections in `content`, `sizes`, `fit` and `duplicates`. `analyze` composes the page about detections from the sections
in `analysis_*`. Charts need ``pip install 'kerasdet[report]'``.
"""

from kerasdet.reports.analyze import Run, analyze_run
from kerasdet.reports.inspect import inspect_dataset

__all__ = ["Run", "analyze_run", "inspect_dataset"]
