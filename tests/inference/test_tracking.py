"""Objects keep their ids from frame to frame, by the real ByteTrack."""

import sys

import numpy as np
import pytest

from kerasdet.errors import UserError
from kerasdet.inference import Detections, Tracker

pytest.importorskip("trackers", reason="needs the extra track")
SIZE = (100, 400)


def frame(index, scores=(0.9, 0.8), order=(0, 1)):
    """One object moves to the right and the other to the left, on another row; a faint third never moves."""
    boxes = np.float32([[10, 10 + 5 * index, 40, 50 + 5 * index], [60, 350 - 5 * index, 90, 380 - 5 * index]])
    rows = [*np.array(boxes)[list(order)], [45, 200, 50, 205]]
    return Detections(rows, [*np.array(scores)[list(order)], 0.02], [*order, 0], SIZE)


def test_objects_keep_their_ids():
    tracker = Tracker(rate=25)
    ids = [tracker.update(frame(index, order=(index % 2, 1 - index % 2))).extras["track_id"] for index in range(8)]
    assert [row.tolist() for row in ids[:1]] == [[-1, -1, -1]]  # seen once
    first, second = ids[1][[1, 0]].tolist()  # in the odd frames the objects change places
    assert first >= 0 and second >= 0 and first != second
    for index, row in enumerate(ids[1:], start=1):
        assert row.tolist() == [*([first, second] if index % 2 == 0 else [second, first]), -1]


def test_faint_object_keeps_its_id():
    tracker = Tracker(rate=25, score_threshold=0.5)
    ids = [tracker.update(frame(i, scores=(0.9, 0.2 if 3 <= i < 6 else 0.8))).extras["track_id"] for i in range(9)]
    assert len({row[1] for row in ids[1:]}) == 1 and ids[4][1] >= 0


def test_faint_object_starts_no_track():
    tracker = Tracker(rate=25, score_threshold=0.5)
    ids = [tracker.update(frame(i, scores=(0.9, 0.4))).extras["track_id"] for i in range(4)]
    assert ids[-1][0] >= 0 and ids[-1][1] == -1


def test_lost_object_gets_its_id_back_and_other_outputs_stay():
    tracker = Tracker(rate=25)
    found = [tracker.update(frame(i)[[0, 2]] if 3 <= i < 6 else frame(i)) for i in range(9)]
    assert found[8].extras["track_id"][1] == found[2].extras["track_id"][1] >= 0
    none = Detections([], [], [], SIZE)
    assert tracker.update(none).extras["track_id"].tolist() == []
    with_extra = Detections([[0, 0, 9, 9]], [0.9], [0], SIZE, extras={"angle": np.array([1.5])})
    assert tracker.update(with_extra).extras["angle"].tolist() == [1.5]


def test_id_never_moves_to_another_class():
    """A cat walks to the right where a dog stood a frame ago, and the dog to where the cat stood."""
    tracker = Tracker(rate=25)
    ids = {}
    for index in range(12):
        cat, dog = 10.0 + 20 * (index % 2), 30.0 - 20 * (index % 2)
        boxes = [[10, cat, 40, cat + 40], [10, dog, 40, dog + 40]]
        found = tracker.update(Detections(boxes, [0.9, 0.8], [0, 1], SIZE))
        for class_id, own in zip(found.class_ids, found.extras["track_id"], strict=True):
            if own >= 0:
                ids.setdefault(int(own), set()).add(int(class_id))
    assert len(ids) >= 2 and all(len(classes) == 1 for classes in ids.values())


def test_drawings_show_ids():
    image = np.zeros((*SIZE, 3), np.uint8)
    plain = frame(0)
    tracked = [
        Detections(plain.boxes, plain.scores, plain.class_ids, SIZE, extras={"track_id": ids})
        for ids in (np.array([3, 4, -1]), np.array([-1, -1, -1]))
    ]
    assert (tracked[0].draw(image) != plain.draw(image)).any()
    np.testing.assert_array_equal(tracked[1].draw(image), plain.draw(image))


@pytest.mark.parametrize("package", ["supervision", "trackers"])
def test_missing_package_raises(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"{package} is not installed, but tracking needs it: .*'kerasdet\[track\]'"):
        Tracker(rate=25)
