"""Defines the base class of predictors that run another predictor, such as test-time augmentation or tiles."""

from collections.abc import Mapping, Sequence

from kerasdet.inference.padded import BranchOutput
from kerasdet.inference.predictor import Predictor


class PredictorWrapper(Predictor):
    """Runs another predictor, and has the classes and outputs of that predictor; a base class.

    Args:
        model: The predictor to run. It is not changed.
    """

    def __init__(self, model: Predictor):
        self.model = model

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the model. None: the model has no classes."""
        return self.model.num_classes

    @property
    def class_names(self) -> Sequence[str] | None:
        """Names of the model's classes. None: the names are unknown."""
        return self.model.class_names

    @property
    def mask_convention(self) -> str | None:
        """Source framework whose pasting of the model's masks is reproduced. None: no masks."""
        return self.model.mask_convention

    @property
    def skeleton(self) -> Sequence[tuple[int, int]]:
        """Pairs of the model's keypoint indices that drawings connect by a line."""
        return self.model.skeleton

    @property
    def branch_outputs(self) -> Mapping[str, BranchOutput]:
        """Maps the outputs of the model's branches to `BranchOutput`s, which describe them."""
        return self.model.branch_outputs
