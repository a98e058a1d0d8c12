"""Lists the classes and functions that gin files can configure.

Objects that Python code constructs ignore gin. A class or function becomes configurable by its line in `SURFACE`.
"""

import inspect
from collections.abc import Callable

import gin
import keras

from kerasdet import data, evaluation, layers, loading, losses, models, training
from kerasdet.data import shapes, transforms
from kerasdet.geometry import anchors, coders, default_boxes, dynamic_matching, matching, sampling
from kerasdet.keras_utils import ConfigFromInit, constructor_arguments
from kerasdet.models import common, postprocess

SURFACE = (
    models.RetinaNet,
    models.FCOS,
    models.Centerness,
    models.SSD,
    models.RTMDet,
    models.RTMDetIns,
    models.DynamicMaskBranch,
    models.FasterRCNN,
    models.MaskRCNN,
    models.KeypointRCNN,
    models.ProposalNetwork,
    models.RPN,
    models.ProposalSelection,
    models.RoIHeads,
    models.MaskBranch,
    models.KeypointBranch,
    models.Preprocessing,
    layers.ResNet,
    layers.MobileNetV3,
    layers.VGG,
    layers.KerasApplication,
    layers.PyramidBackbone,
    layers.FPN,
    layers.SSDNeck,
    layers.SSDHead,
    layers.CSPNeXt,
    layers.CSPNeXtPAFPN,
    layers.BoxHead,
    layers.ConvTop,
    layers.MaxPoolTop,
    layers.RoIPooler,
    layers.RetinaNetHead,
    layers.FCOSHead,
    layers.RTMDetHead,
    anchors.AnchorGenerator,
    anchors.octave_sizes,
    anchors.point_squares,
    default_boxes.DefaultBoxes,
    default_boxes.SSDMatcher,
    coders.DeltaCoder,
    coders.DistanceCoder,
    matching.IoUMatcher,
    matching.FCOSMatcher,
    dynamic_matching.DynamicSoftLabelAssigner,
    sampling.BalancedSampler,
    losses.FocalLoss,
    losses.QualityFocalLoss,
    losses.SmoothL1Loss,
    losses.IoULoss,
    losses.GIoULoss,
    postprocess.Postprocessing,
    common.LossNormalizer,
    data.CocoDataset,
    data.VocDataset,
    data.open_dataset,
    data.ImageSampler,
    *(getattr(transforms, name) for name in transforms.__all__ if name not in ("MixTransform", "Transform")),
    shapes.shapes_dataset,
    loading.pretrained,
    loading.backbone_weights,
    training.SGD,
    training.WarmupMultiStep,
    training.WarmupCosine,
    training.WarmupFlatCosine,
    training.Validation,
    training.Checkpointing,
    training.StepOptions,
    training.MLflowLogger,
    training.WandbLogger,
    training.train,
    evaluation.evaluate,
    keras.callbacks.CSVLogger,
    keras.callbacks.EarlyStopping,
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.RemoteMonitor,
    keras.callbacks.TerminateOnNaN,
    training.AdamW,
    keras.optimizers.Lamb,
)


def arguments_of(item: Callable) -> list[str]:
    """Returns the names of the arguments that gin may bind, except those that every Keras layer has.

    Args:
        item: Class or function.
    """
    if isinstance(item, type) and issubclass(item, ConfigFromInit):
        return constructor_arguments(item)
    parameters = inspect.signature(item).parameters.values()
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def inherited_arguments(item: Callable) -> list[str]:
    """Returns the names of arguments of Keras' base classes that gin may bind.

    Args:
        item: Class or function.
    """
    takes_any = any(p.kind == p.VAR_KEYWORD for p in inspect.signature(item).parameters.values())
    names = ["name", "dtype", "clipnorm", "clipvalue", "global_clipnorm"] if takes_any else []
    return names + (["use_ema", "ema_momentum"] if item in (training.SGD, training.AdamW) else [])


def _register(item):
    """Makes `item` configurable. A misspelt argument is an error even if `item` takes ``**kwargs``."""
    return gin.external_configurable(
        item, module="kerasdet", allowlist=[*arguments_of(item), *inherited_arguments(item)]
    )


ARGUMENTS = {item.__name__: arguments_of(item) for item in SURFACE}
INHERITED = {item.__name__: inherited_arguments(item) for item in SURFACE}
ITEMS: dict[str, Callable] = {item.__name__: item for item in SURFACE}
CONFIGURABLES = {item.__name__: _register(item) for item in SURFACE}  # gin's versions, which apply the bindings
