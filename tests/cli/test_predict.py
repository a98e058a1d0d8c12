"""`kerasdet predict` on videos and tiles, and what it writes: JSON, drawings, crops, COCO files."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from PIL import Image

from kerasdet import cli
from kerasdet.cli.predict import predict
from kerasdet.data import CocoDataset
from kerasdet.inference import Detections, TiledPredictor, Tracker, VideoReader, VideoWriter, video
from kerasdet.loading import load_predictor

pytest.importorskip("av", reason="needs the extra video")


pytestmark = pytest.mark.usefixtures("unoptimized_graphs", "models_opened_once")


def kerasdet(*arguments):
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """model.keras, large.png, and clip.mp4: 6 frames of 64x80 in which a picture moves to the left."""
    folder = tmp_path_factory.mktemp("predict")
    tiny.talkative(score_threshold=0.02).save(folder / "model.keras")
    [wide] = tiny.images(sizes=((64, 160),))
    with VideoWriter(folder / "clip.mp4", rate=5) as writer:
        for index in range(6):
            writer.write(wide[:, 4 * index : 4 * index + 80], index / 5)
    [large] = tiny.images(seed=1, sizes=((120, 150),))
    Image.fromarray(large).save(folder / "large.png")
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return load_predictor(folder / "model.keras")


def frames(path):
    with VideoReader(str(path)) as reader:
        return list(reader)


class WithAges:
    """Answers every image with one disk and further outputs of branches: a number and a list."""

    class_names = ("disk",)

    def detect(self, image):
        extras = {"age": np.float32([31.52]), "colour": np.float32([[1, 0, 0]])}
        return Detections(np.float32([[0, 0, 8, 8]]), [0.9], [0], (16, 16), self.class_names, extras=extras)


@pytest.mark.parametrize(
    ("scores", "line"),
    [([0.9], "1 objects"), ([0.2, 0.1], "0 objects; the best score, 0.200, is not above --score-threshold 0.3")],
)
def test_best_score_is_printed_if_no_object_is_above_the_threshold(folder, capsys, scores, line):
    count = len(scores)
    found = Detections(np.ones((count, 4)), scores, [0] * count, (16, 16), ("disk",))
    predict(SimpleNamespace(detect=lambda image: found), [str(folder / "large.png")], score_threshold=0.3)
    assert capsys.readouterr().out.splitlines()[0] == f"{folder / 'large.png'}: {line}"


def test_own_threshold_is_printed_if_the_model_finds_nothing(folder, model, capsys, monkeypatch):
    monkeypatch.setattr(model, "detect", lambda image: Detections([], [], [], (16, 16), ("disk",)))
    predict(model, [str(folder / "large.png")], score_threshold=0.3)
    assert capsys.readouterr().out.endswith(": 0 objects; the model itself drops scores of 0.02 or less\n")


def test_numbers_of_branches_are_printed(folder, capsys):
    predict(WithAges(), [str(folder / "large.png")], score_threshold=0.3)
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith("  disk ") and line.endswith("   age 31.52")


def test_every_frame_of_a_video_is_detected(folder, model, capsys):
    clip = folder / "clip.mp4"
    assert kerasdet("predict", folder / "model.keras", clip, "--json", "--score-threshold", "0.05") == 0
    entries = json.loads(capsys.readouterr().out)
    assert [(entry["video"], entry["frame"]) for entry in entries] == [(str(clip), index) for index in range(6)]
    assert [entry["time"] for entry in entries] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    for entry, frame in zip(entries, frames(clip), strict=True):
        expected = model.detect(frame.image).filter(score=0.05)
        assert len(expected) > 3
        np.testing.assert_allclose([each["box"] for each in entry["detections"]], expected.boxes, atol=2e-3)
    assert kerasdet("predict", folder / "model.keras", clip, "--max-frames", "2", "--score-threshold", "0.05") == 0
    titles = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert [title.rpartition(":")[0] for title in titles] == [f"{clip} frame 0 (0.00 s)", f"{clip} frame 1 (0.20 s)"]


def test_tracking_draws_and_prints_ids(folder, model, capsys, tmp_path):
    pytest.importorskip("trackers", reason="needs the extra track")
    clip = folder / "clip.mp4"
    options = ["--track", "--json", "--draw", tmp_path, "--score-threshold", "0.3", "--coco", tmp_path / "found.json"]
    assert kerasdet("predict", folder / "model.keras", clip, *options) == 0
    entries = json.loads(capsys.readouterr().out)
    tracker = Tracker(rate=5, score_threshold=0.3)
    ids = []
    drawn = frames(tmp_path / "clip.mp4")
    assert [frame.time for frame in drawn] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    for entry, frame, picture in zip(entries, frames(clip), drawn, strict=True):
        found = tracker.update(model.detect(frame.image)).filter(score=0.3)
        expected = [value if value >= 0 else None for value in found.extras["track_id"].tolist()]
        assert [each["track_id"] for each in entry["detections"]] == expected
        ids.append({value for value in expected if value is not None})
        assert picture.image.shape == (128, 160, 3)  # small pictures are drawn at twice their size
        assert np.abs(picture.image.astype(int) - found.draw(frame.image, scale=2)).mean() < 20  # H.264 halves colours
    assert not ids[0] and ids[2] & ids[5]
    coco = json.loads((tmp_path / "found.json").read_text())
    assert coco["images"][1]["file_name"] == "clip/frame_000001.png"
    assert {each["attributes"]["track_id"] for each in coco["annotations"] if "attributes" in each} == set.union(*ids)


def test_tiles_of_a_large_image(folder, model, capsys):
    path = folder / "large.png"
    options = ["--tile", "64", "--overlap", "0.3", "--json", "--score-threshold", "0.05"]
    assert kerasdet("predict", folder / "model.keras", path, *options) == 0
    [entry] = json.loads(capsys.readouterr().out)
    expected = TiledPredictor(model, 64, 0.3).detect(path).filter(score=0.05)
    assert len(expected) > len(model.detect(path).filter(score=0.05))
    np.testing.assert_allclose([each["box"] for each in entry["detections"]], expected.boxes, atol=2e-3)


def test_eval_takes_tiles(folder, tmp_path):
    data = tiny.shapes_data(tmp_path / "shapes", num_images=2, image_size=(96, 96))
    options = ["--annotations", data.annotations, "--tile", "64", "--save-detections", tmp_path / "found.json"]
    assert kerasdet("eval", folder / "model.keras", *options) == 0
    tiled = TiledPredictor(load_predictor(folder / "model.keras"), 64)
    expected = np.concatenate([tiled.detect(record.image()).scores for record in data.records])
    found = json.loads((tmp_path / "found.json").read_text())
    np.testing.assert_allclose([each["score"] for each in found], expected, rtol=1e-4)


def test_crops_and_coco_file(folder, model, tmp_path, caplog):
    path, old = folder / "large.png", tmp_path / "crops" / "other" / "large_999.png"
    old.parent.mkdir(parents=True)
    old.touch()
    options = ["--crops", tmp_path / "crops", "--coco", tmp_path / "found.json", "--score-threshold", "0.1"]
    assert kerasdet("predict", folder / "model.keras", path, *options) == 0
    assert f"--crops {tmp_path / 'crops'} holds crops of an earlier command, which stay beside" in caplog.text
    old.unlink()
    found, image = model.detect(path).filter(score=0.1), np.asarray(Image.open(path))
    files = sorted((tmp_path / "crops").glob("*/*.png"), key=lambda file: file.name)
    assert [file.parent.name for file in files] == found.labels
    assert [file.name for file in files] == [f"large_{index:03d}.png" for index in range(len(found))]
    for file, (y1, x1, y2, x2) in zip(files, found.boxes, strict=True):
        top, left, bottom, right = int(y1), int(x1), int(np.ceil(y2)), int(np.ceil(x2))
        np.testing.assert_array_equal(np.asarray(Image.open(file)), image[top:bottom, left:right])
    data = CocoDataset(tmp_path / "found.json", folder)
    [record] = data.records
    assert tuple(data.class_names) == tiny.CLASS_NAMES
    np.testing.assert_allclose(record.boxes, found.boxes, atol=1e-3)
    np.testing.assert_array_equal(record.class_ids, found.class_ids)
    scores = [each["score"] for each in json.loads((tmp_path / "found.json").read_text())["annotations"]]
    assert scores == pytest.approx(found.scores.tolist())


def test_camera_ends_after_max_frames(folder, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(video, "CAMERAS", {"linux": ("lavfi", "testsrc=size=64x4{}:rate=5")})  # FFmpeg's test picture
    assert kerasdet("predict", folder / "model.keras", "8", "--max-frames", "3", "--json", "--draw", tmp_path) == 0
    assert [(e["video"], e["frame"]) for e in json.loads(capsys.readouterr().out)] == [("8", 0), ("8", 1), ("8", 2)]
    assert len(frames(tmp_path / "camera8.mp4")) == 3


def test_interrupted_video_is_complete_up_to_there(folder, capsys, monkeypatch, tmp_path):
    read = VideoReader.__iter__

    def interrupted(self):
        for frame in read(self):
            if frame.index == 3:
                raise KeyboardInterrupt
            yield frame

    monkeypatch.setattr(VideoReader, "__iter__", interrupted)
    assert kerasdet("predict", folder / "model.keras", folder / "clip.mp4", "--json", "--draw", tmp_path) == 0
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)) == 3 and "Interrupted: " in captured.err
    assert len(frames(tmp_path / "clip.mp4")) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/words.mp4"], "1 of 1 videos could not be read: The video {}/words.mp4 cannot be read (Invalid data"),
        (["{}/none.mp4"], "1 of 1 videos could not be read: The video {}/none.mp4 does not exist"),
        (["97"], "1 of 1 videos could not be read: Camera 97 (/dev/video97) does not open"),
        (["{}/words.mp4", "{}/large.png"], "1 of 2 images and videos could not be read: The video {}/words.mp4"),
        (["{}/large.png", "--track"], "--track is for videos, but only images are given"),
        (["{}/large.png", "--max-frames", "3"], "--max-frames is for videos, but only images are given"),
        (["{}/large.png", "--overlap", "0.3"], "--overlap was given without --tile"),
        (["{}/large.png", "--tile", "64", "--overlap", "1"], "overlap is 1.0: expected a fraction of 0 or more"),
        (["{}/clip.mp4", "--draw", "{}"], "--draw {} would overwrite the video {}/clip.mp4: choose another folder"),
    ],
)
def test_mistakes_are_one_sentence(folder, capsys, arguments, message):
    (folder / "words.mp4").write_text("not a video" * 99)
    words = [word.replace("{}", str(folder)) for word in arguments]
    assert kerasdet("predict", folder / "model.keras", *words) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert message.replace("{}", str(folder)) in line


@pytest.mark.parametrize(("package", "extra"), [("av", "video"), ("trackers", "track")])
def test_missing_extra_is_one_sentence(folder, capsys, monkeypatch, package, extra):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    assert kerasdet("predict", folder / "none.keras", folder / "clip.mp4", "--track") == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert f"{package} is not installed" in line and f"pip install 'kerasdet[{extra}]'" in line


def test_drawings_replace_only_drawings(folder, tmp_path, capsys):
    image, clip = tmp_path / "large.jpg", tmp_path / "clip.mkv"
    Image.open(folder / "large.png").save(image)
    shutil.copy(folder / "clip.mp4", clip)
    command = ["predict", folder / "model.keras", image, clip, "--max-frames", "1", "--draw", tmp_path]
    assert kerasdet(*command) == 0
    assert kerasdet(*command) == 0  # the same drawings again
    for own in (tmp_path / "large.png", tmp_path / "clip.mp4"):
        drawing, foreign = own.read_bytes(), own.read_bytes().replace(b"written by kerasdet", b"made by its owners.")
        own.write_bytes(foreign)
        assert kerasdet(*command) == 2
        assert f"would overwrite {own}, which kerasdet did not write" in capsys.readouterr().err
        assert own.read_bytes() == foreign
        own.write_bytes(drawing)


def test_drawings_of_files_with_equal_names_stay_apart(folder, tmp_path):
    paths = [tmp_path / name for name in ("a/x.png", "b/x.png", "000_x.png")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(tiny.images(sizes=((32, 32),))[0]).save(path)
    assert kerasdet("predict", folder / "model.keras", *paths, "--draw", tmp_path / "drawn") == 0
    assert len(list((tmp_path / "drawn").iterdir())) == 3
