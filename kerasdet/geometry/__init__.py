"""Defines pure functions for boxes, anchors, matching, sampling, masks and keypoints."""
