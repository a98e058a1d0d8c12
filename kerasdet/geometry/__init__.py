"""Boxes, anchors, matching, masks and keypoints as pure functions."""
