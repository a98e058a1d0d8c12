"""Defines functions and classes without weights for boxes, anchors, matching, sampling, masks and keypoints."""
