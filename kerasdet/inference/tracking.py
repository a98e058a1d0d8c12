"""Assigns ids to the objects of a video; an object keeps its id from frame to frame."""

import dataclasses
import functools

import numpy as np

from kerasdet.errors import require_extra
from kerasdet.inference.detections import Detections
from kerasdet.inference.interop import TRACK_ID

LOWEST_SCORE = 0.1  # from ByteTrack: detections with lower scores are not matched to objects


class Tracker:
    """Tracks the objects of one video: an object keeps its id from frame to frame.

    The algorithm is ByteTrack (https://arxiv.org/abs/2110.06864) of the package `trackers`. Each class is tracked
    separately, so an id never moves to an object of another class; an object whose class changes gets another id. Pass
    detections with low scores as well: they let an object keep its id while it is hard to see.

    Args:
        rate: Frames per second of the video. A lost object keeps its id for one second.
        score_threshold: Detections with a score below this do not start a new track. In [0, 1].

    Raises:
        UserError: If the package `trackers` or `supervision` is not installed.

    Example:
        >>> tracker = Tracker(rate=25)
        >>> for frame in video:
        ...     found = tracker.update(model.detect(frame.image))
        ...     print(found.extras["track_id"])
    """

    def __init__(self, rate: float, score_threshold: float = 0.3):
        self._supervision = require_extra("supervision", "tracking", "track")
        trackers = require_extra("trackers", "tracking", "track")
        self._make = functools.partial(
            trackers.ByteTrackTracker,
            frame_rate=rate,
            track_activation_threshold=score_threshold,
            high_conf_det_threshold=score_threshold,
        )
        self._by_class = {}
        self._ids = {}  # (class, id within the class) -> id

    def update(self, found: Detections) -> Detections:
        """Matches the detections of the next frame to the objects of earlier frames, and assigns ids.

        Args:
            found: All detections of the frame.

        Returns:
            The same detections, in the same order, with ``extras["track_id"]`` (N,) int64: an id from 0, or -1 for an
            object without id. An object gets its id in the second frame that shows it.
        """
        ids = np.full(len(found), -1)
        for class_id in sorted(self._by_class.keys() | set(found.class_ids.tolist())):
            if class_id not in self._by_class:
                self._by_class[class_id] = self._make()
            used = np.flatnonzero((found.class_ids == class_id) & (found.scores >= LOWEST_SCORE))
            theirs = self._supervision.Detections(
                xyxy=found.xyxy[used], confidence=found.scores[used], data={"index": used}
            )
            tracked = self._by_class[class_id].update(theirs)
            for index, own in zip(tracked.data.get("index", ()), tracked.tracker_id, strict=True):
                if own >= 0:
                    ids[index] = self._ids.setdefault((class_id, int(own)), len(self._ids))
        return dataclasses.replace(found, extras={**found.extras, TRACK_ID: ids})
