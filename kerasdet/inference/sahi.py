"""Adapts predictors to SAHI, which slices images. Importing this module requires SAHI."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kerasdet.errors import UserError, require_extra
from kerasdet.inference.detections import Detections
from kerasdet.inference.predictor import Predictor

_base = require_extra("sahi.models.base", "kerasdet.inference.sahi", "sahi")
_prediction = require_extra("sahi.prediction", "kerasdet.inference.sahi", "sahi")
_compatibility = require_extra("sahi.utils.compatibility", "kerasdet.inference.sahi", "sahi")
_cv = require_extra("sahi.utils.cv", "kerasdet.inference.sahi", "sahi")


class SahiDetectionModel(_base.DetectionModel):
    """Wraps a predictor as a `DetectionModel` of SAHI, for `get_sliced_prediction` and SAHI's other functions.

    SAHI's category ids equal kerasdet's class ids, counted from 0. Masks become polygons, as SAHI requires. Objects
    with an empty box, or with a mask that is empty or too small for a polygon, are left out.

    Args:
        model: A Keras model, an export, or any other `Predictor`.
        confidence_threshold: Detections with a score below this are dropped. In [0, 1].
        **kwargs: Further arguments of SAHI's `DetectionModel`, such as `category_remapping`.

    Raises:
        UserError: If SAHI is not installed, or `model` is not a predictor.

    Example:
        >>> from sahi.predict import get_sliced_prediction
        >>> model = SahiDetectionModel(kerasdet.load("runs/first"), confidence_threshold=0.4)
        >>> result = get_sliced_prediction("large.jpg", model, slice_height=640, slice_width=640)
    """

    def __init__(self, model: Predictor, confidence_threshold: float = 0.3, **kwargs: Any):
        if not isinstance(model, Predictor):
            raise UserError(
                f"model is of type {type(model).__name__}: expected a predictor, such as the result of "
                "kerasdet.load(...)."
            )
        super().__init__(model=model, confidence_threshold=confidence_threshold, **kwargs)

    def set_model(self, model: Predictor, **kwargs: Any) -> None:
        """Sets the predictor and reads its class names. SAHI calls this method.

        Args:
            model: The predictor.
            **kwargs: Ignored.
        """
        self.model = model
        names = model.class_names or [str(k) for k in range(model.num_classes or 1)]
        self.category_mapping = {str(k): name for k, name in enumerate(names)}

    def perform_inference(self, image: np.ndarray) -> None:
        """Detects objects in one image and stores the detections. SAHI calls this method.

        Args:
            image: (H, W, 3) uint8 RGB.
        """
        self._original_predictions = [self.model.detect(image)]

    def perform_batch_inference(self, images: Sequence[np.ndarray]) -> None:
        """Detects objects in several images and stores the detections. SAHI calls this method.

        Args:
            images: Arrays (H, W, 3) uint8 RGB.
        """
        self._original_predictions = self.model.detect(list(images), batch_size=len(images))

    def _create_object_prediction_list_from_original_predictions(self, shift_amount_list=None, full_shape_list=None):
        shifts = _compatibility.fix_shift_amount_list(shift_amount_list or [[0, 0]])
        shapes = _compatibility.fix_full_shape_list(full_shape_list)
        self._object_prediction_list_per_image = [
            self._predictions(found, shifts[index], None if shapes is None else shapes[index])
            for index, found in enumerate(self._original_predictions)
        ]

    def _predictions(self, found: Detections, shift, shape):
        found = found[found.scores >= self.confidence_threshold]
        masks = found.masks
        predictions = []
        for index, (box, score, class_id) in enumerate(zip(found.xyxy, found.scores, found.class_ids, strict=True)):
            polygons = None if masks is None else _cv.get_coco_segmentation_from_bool_mask(masks[index])
            if (masks is not None and not polygons) or (box[2:] <= box[:2]).any():
                continue
            predictions.append(
                _prediction.ObjectPrediction(
                    bbox=box.tolist(),
                    category_id=int(class_id),
                    category_name=self.category_mapping[str(class_id)],
                    segmentation=polygons,
                    score=float(score),
                    shift_amount=shift,
                    full_shape=list(found.image_size) if masks is not None and shape is None else shape,
                )
            )
        return predictions
