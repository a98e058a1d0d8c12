"""Describes a predictor that runs another one, such as test-time augmentation or tiles."""

from collections.abc import Mapping, Sequence

from kerasdet.inference.padded import BranchOutput
from kerasdet.inference.predictor import Predictor


class PredictorWrapper(Predictor):
    """Base class of predictors that run another predictor and have its classes and outputs.

    Args:
        model: The other predictor. It is not changed.
    """

    def __init__(self, model: Predictor):
        self.model = model

    @property
    def num_classes(self) -> int | None:
        """Number of the model's classes, or None for a model without classes."""
        return self.model.num_classes

    @property
    def class_names(self) -> Sequence[str] | None:
        """Names of the model's classes, or None."""
        return self.model.class_names

    @property
    def mask_convention(self) -> str | None:
        """The model's convention of pasting masks, or None for a model without masks."""
        return self.model.mask_convention

    @property
    def skeleton(self) -> Sequence[tuple[int, int]]:
        """Pairs of the model's keypoints that drawings connect by a line."""
        return self.model.skeleton

    @property
    def branch_outputs(self) -> Mapping[str, BranchOutput]:
        """The outputs of the model's branches."""
        return self.model.branch_outputs
