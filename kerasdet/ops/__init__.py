"""Operations of detectors, in pure TensorFlow."""

from kerasdet.ops.nms import nms

__all__ = ["nms"]
