"""Detects objects with TensorFlow and Keras 3.

``import kerasdet`` takes milliseconds: TensorFlow, Keras and kerasdet's own modules are imported when a name of the
package is first used.

`keras.models.load_model` finds only classes whose modules are imported. Therefore kerasdet imports all its modules as
soon as Keras is imported, or immediately if Keras is already imported. `load_model` then works regardless of the order
in which the user imports Keras and kerasdet.
"""

import functools
import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kerasdet.evaluation import evaluate
    from kerasdet.inference import Detections
    from kerasdet.layers import FPN, ResNet
    from kerasdet.loading import load
    from kerasdet.models import (
        FCOS,
        SSD,
        FasterRCNN,
        KeypointRCNN,
        MaskRCNN,
        ProposalNetwork,
        RetinaNet,
        RTMDet,
        RTMDetIns,
    )
    from kerasdet.training import train

__all__ = [
    "FCOS",
    "FPN",
    "SSD",
    "Detections",
    "FasterRCNN",
    "KeypointRCNN",
    "MaskRCNN",
    "ProposalNetwork",
    "RTMDet",
    "RTMDetIns",
    "ResNet",
    "RetinaNet",
    "evaluate",
    "load",
    "train",
]
__version__ = "0.1.0"

_HOMES = {
    "Detections": "kerasdet.inference",
    **dict.fromkeys(["FPN", "ResNet"], "kerasdet.layers"),
    **dict.fromkeys(["FCOS", "ProposalNetwork", "RetinaNet", "RTMDet", "RTMDetIns", "SSD"], "kerasdet.models"),
    **dict.fromkeys(["FasterRCNN", "KeypointRCNN", "MaskRCNN"], "kerasdet.models"),
    "evaluate": "kerasdet.evaluation",
    "load": "kerasdet.loading",
    "train": "kerasdet.training",
}
_ROOMS = (
    "analysis",
    "checkpoints",
    "data",
    "evaluation",
    "export",
    "geometry",
    "inference",
    "layers",
    "loading",
    "losses",
    "models",
    "ops",
    "reports",
    "training",
    "visualize",
)


def __getattr__(name: str):
    """Imports a class, function or module of the package when the name is first used."""
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in _ROOMS:
        value = importlib.import_module(f"kerasdet.{name}")
    else:
        raise AttributeError(f"module 'kerasdet' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})


def _import_everything():
    for home in dict.fromkeys(_HOMES.values()):
        importlib.import_module(home)


class _RegisterWithKeras(MetaPathFinder):
    """Imports all of kerasdet as soon as Keras is imported, which registers kerasdet's classes with Keras.

    Keras may be imported in the middle of another import: by TensorFlow, or by a module of kerasdet. Importing kerasdet
    at that moment would find half-initialised modules. Therefore the finder counts the running imports of TensorFlow,
    Keras and kerasdet, and acts when the outermost import has ended.
    """

    def __init__(self):
        self._running = 0

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in ("keras", "tensorflow") and not fullname.startswith("kerasdet."):
            return None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(fullname, path, target)):
                if spec.loader is not None:
                    # Only this method is replaced: importlib.resources needs the loader's type and other methods
                    spec.loader.exec_module = functools.partial(self._exec_module, spec.loader.exec_module)
                return spec
        return None

    def _exec_module(self, exec_module, module):
        self._running += 1
        try:
            exec_module(module)
        finally:
            self._running -= 1
        if not self._running and "keras" in sys.modules and self in sys.meta_path:
            sys.meta_path.remove(self)
            _import_everything()


if "keras" in sys.modules:
    _import_everything()
else:
    sys.meta_path.insert(0, _RegisterWithKeras())
