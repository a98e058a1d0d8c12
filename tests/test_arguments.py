import pytest

from kerasdet import layers, losses, models, training
from kerasdet.arguments import check_numbers, check_positive
from kerasdet.errors import UserError
from kerasdet.geometry import anchors, coders, default_boxes, dynamic_matching, matching, sampling
from kerasdet.models import common, dynamic_mask_branch, postprocess

IMPOSSIBLE = {
    "score threshold in percent": lambda: postprocess.Postprocessing(score_threshold=50),
    "score threshold below 0": lambda: postprocess.Postprocessing(score_threshold=-0.1),
    "NMS threshold in percent": lambda: postprocess.Postprocessing(nms_threshold=50),
    "no detections": lambda: postprocess.Postprocessing(max_detections=0),
    "half a detection": lambda: postprocess.Postprocessing(max_detections=2.5),
    "detections as text": lambda: postprocess.Postprocessing(max_detections="100"),
    "no proposals": lambda: models.ProposalSelection(post_nms_top_k=0),
    "NMS threshold of proposals": lambda: models.ProposalSelection(nms_threshold=7),
    "weight of positives": lambda: losses.FocalLoss(alpha=25),
    "weight of minus infinity": lambda: losses.FocalLoss(alpha=-float("inf")),
    "negative exponent": lambda: losses.FocalLoss(gamma=-2),
    "negative beta": lambda: losses.SmoothL1Loss(beta=-1),
    "IoU in percent": lambda: matching.IoUMatcher(foreground_iou=50, background_iou=40),
    "background above foreground": lambda: matching.IoUMatcher(foreground_iou=0.4, background_iou=0.5),
    "fraction in percent": lambda: sampling.BalancedSampler(256, positive_fraction=25),
    "no samples": lambda: sampling.BalancedSampler(0),
    "negative rate": lambda: training.WarmupCosine(-0.1, total_steps=10),
    "rate as text": lambda: training.WarmupCosine("0.1", total_steps=10),
    "rate that is not a number": lambda: training.WarmupMultiStep(float("nan"), (10,)),
    "warmup factor above 1": lambda: training.WarmupMultiStep(0.1, (10,), warmup_factor=3),
    "momentum above 1": lambda: common.LossNormalizer(momentum=9),
    "no pixels": lambda: models.Preprocessing(shortest=0),
    "padding to multiples of 0": lambda: models.Preprocessing(size_divisor=0),
    "longer side below the shorter": lambda: models.Preprocessing(shortest=100, longest=50),
    "negative rate of SGD": lambda: training.SGD(-0.1),
    "momentum of 2": lambda: training.SGD(0.1, momentum=2),
    "negative weight decay": lambda: training.SGD(0.1, weight_decay=-1),
    "milestones as fractions": lambda: training.WarmupMultiStep(0.1, (0.5, 0.8)),
    "negative convolutions": lambda: layers.RetinaNetHead(num_convs=-1),
    "no mask channels": lambda: models.MaskBranch(channels=0),
    "no keypoints": lambda: models.KeypointBranch(num_keypoints=0),
    "no channels": lambda: layers.ResNet(18, width=0),
    "frozen parts": lambda: layers.ResNet(18, width=8, freeze_at=9),
    "no channels of a level": lambda: layers.FPN(channels=0),
    "negative anchors": lambda: anchors.AnchorGenerator(anchors.octave_sizes(smallest=-5.0)),
    "flat anchors": lambda: anchors.AnchorGenerator(aspect_ratios=(0.0,)),
    "no anchors": lambda: anchors.AnchorGenerator(aspect_ratios=()),
    "weights of 0": lambda: coders.DeltaCoder(weights=(0, 0, 0, 0)),
    "score threshold of proposals": lambda: models.ProposalSelection(score_threshold=5),
    "no bins": lambda: layers.RoIPooler(0),
    "negative sampling": lambda: layers.RoIPooler(sampling_ratio=-1),
    "negative convolutions of RTMDet": lambda: layers.RTMDetHead(num_convs=-1),
    "impossible classes": lambda: layers.FCOSHead(prior_probability=0),
    "certain classes": lambda: layers.RetinaNetHead(prior_probability=1),
    "classes in percent": lambda: layers.RTMDetHead(prior_probability=1.5),
    "negative exponent of qualities": lambda: losses.QualityFocalLoss(beta=-1),
    "negative weight": lambda: losses.IoULoss(weight=-1),
    "weight as text": lambda: losses.GIoULoss(weight="2"),
    "IoU of SSD in percent": lambda: default_boxes.SSDMatcher(foreground_iou=50),
    "no candidates": lambda: dynamic_matching.DynamicSoftLabelAssigner(top_k=0),
    "negative radius": lambda: dynamic_matching.DynamicSoftLabelAssigner(center_radius=-3),
    "negative convolutions of masks": lambda: dynamic_mask_branch.DynamicMaskBranch(feature_convs=-1),
    "padding of depthwise convolutions": lambda: layers.SSDNeck(separable=True, unpadded=1),
    "no features": lambda: layers.ResNet(18, width=8, out_features=()),
    "no features of CSPNeXt": lambda: layers.CSPNeXt(out_features=()),
    "feature as text": lambda: layers.CSPNeXt(out_features="c5"),
    "two weights": lambda: coders.DeltaCoder(weights=(1, 1)),
    "a number of weights": lambda: coders.DeltaCoder(weights=10.0),
    "sizes without levels": lambda: anchors.AnchorGenerator(sizes=(32, 64, 128, 256, 512)),
    "no features of MobileNetV3": lambda: layers.MobileNetV3(out_features=()),
    "feature of MobileNetV3 as text": lambda: layers.MobileNetV3(out_features="c3"),
}


def test_background_above_foreground_names_both():
    with pytest.raises(UserError, match=r"from 0 to foreground_iou, which is 0\.4"):
        matching.IoUMatcher(foreground_iou=0.4, background_iou=0.5)


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_number_raises_where_it_is_set(name):
    with pytest.raises(UserError, match=r"expected (a |an |numbers |four |some of |unpadded=0)|Increase longest "):
        IMPOSSIBLE[name]()


def test_numbers_at_the_limits_and_none_are_taken():
    check_numbers("Example", 0, 1, low=0, high=1.0, off=None, several=(0.5, 1))
    check_positive("Example", count=1, off=None)


@pytest.mark.parametrize("value", [True, "1", float("inf"), float("nan"), -0.1, (0.5, -1)])
def test_message_names_owner_name_and_value(value):
    with pytest.raises(UserError, match=r"^Example\.size is .*: expected a number of 0 or more\.$"):
        check_numbers("Example", 0, size=value)
