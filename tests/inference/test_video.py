"""Videos are written and read with their pictures, times and rotation; cameras are files of another kind."""

import struct
import sys

import numpy as np
import pytest
import tiny

from kerasdet.errors import UserError
from kerasdet.inference import VideoReader, VideoWriter, video
from kerasdet.inference.video import is_video

av = pytest.importorskip("av", reason="needs the extra video")
TIMES = [0, 0.1, 0.2, 0.5, 0.6]


def picture(index, height=61, width=90):
    """A red square that moves to the right."""
    image = np.full((height, width, 3), 40, np.uint8)
    image[10:30, 5 + 8 * index : 25 + 8 * index] = 250, 30, 30
    return image


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "square.mp4"
    with VideoWriter(path, rate=10) as writer:
        for index, time in enumerate(TIMES):
            writer.write(picture(index), time)
    return path


def test_frames_come_back_with_their_times(file):
    with VideoReader(str(file)) as reader:
        frames = list(reader)
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4]
    assert [frame.time for frame in frames] == pytest.approx(TIMES)
    for frame in frames:
        assert frame.image.shape == (62, 90, 3) and frame.image.dtype == np.uint8  # H.264 needs even sizes
        assert np.abs(frame.image[:61].astype(int) - picture(frame.index)).mean() < 4


def test_any_name_and_kind_of_path_is_read(file, tmp_path):
    copy = tmp_path / "night: 1.mp4"
    copy.write_bytes(file.read_bytes())
    with VideoReader(copy) as reader:
        assert len(list(reader)) == 5


def test_picture_time_or_rate_of_another_kind_raises(tmp_path):
    for image, time, message in (
        (picture(0)[..., 0], 0.0, r"shape \(61, 90\) and the type uint8: expected RGB"),
        (picture(0) / 255, 0.0, "the type float64: expected RGB"),
        (picture(0), float("nan"), "time of a picture .* is nan: expected seconds"),
    ):
        with pytest.raises(UserError, match=message), VideoWriter(tmp_path / "a.mp4", rate=10) as writer:
            writer.write(image, time)
    for rate in (0, -5, float("nan"), "fast"):
        with pytest.raises(UserError, match=r"VideoWriter\.rate is"):
            VideoWriter(tmp_path / "a.mp4", rate=rate)
    assert not list(tmp_path.iterdir())


def test_full_disk_leaves_no_video(tmp_path):
    def write():
        with VideoWriter(tmp_path / "a.mp4", rate=10) as writer:
            for index in range(9):
                writer.write(np.random.default_rng(index).integers(0, 255, (120, 160, 3), np.uint8), index / 10)

    with tiny.disk(400), pytest.raises(OSError, match=rf"{tmp_path}/a\.mp4 cannot be written: File too large"):
        write()
    assert not list(tmp_path.iterdir())


def test_browsers_can_play_the_file(file):
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    assert not list(file.parent.glob(".partial*"))


@pytest.mark.parametrize(
    ("matrix", "corner"),
    [
        ((0, 1, -1, 0), "right"),
        ((-1, 0, 0, -1), "bottom"),
        ((0, -1, 1, 0), "left"),
        ((-1, 0, 0, 1), "mirrored"),  # by a front camera
        ((0, 1, 1, 0), "transposed"),
    ],
)
def test_rotation_of_a_phones_video_is_applied(file, tmp_path, matrix, corner):
    """The red square is at the top left of the stored pictures; the header of the track says how to turn them."""
    content = bytearray(file.read_bytes())
    start = content.index(b"tkhd") + 44
    a, b, c, d = (value * 65536 for value in matrix)
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(content)
    with VideoReader(str(tmp_path / "turned.mp4")) as reader:
        image = next(iter(reader)).image
    y, x = (values.mean() for values in np.nonzero(image[..., 0] > 180))
    upright = {"right": ((90, 62), 15, 42), "bottom": ((62, 90), 42, 75), "left": ((90, 62), 75, 20)}
    upright |= {"mirrored": ((62, 90), 20, 75), "transposed": ((90, 62), 15, 20)}
    shape, expected_y, expected_x = upright[corner]
    assert image.shape[:2] == shape
    assert (y, x) == (pytest.approx(expected_y, abs=2), pytest.approx(expected_x, abs=2))


def test_pictures_of_another_size_are_resized(tmp_path):
    with VideoWriter(tmp_path / "sizes.mp4", rate=5) as writer:
        writer.write(picture(0, 64, 80), 0)
        writer.write(picture(0, 128, 160), 0.2)
    with VideoReader(str(tmp_path / "sizes.mp4")) as reader:
        assert [frame.image.shape for frame in reader] == [(64, 80, 3)] * 2


def test_writer_without_pictures_leaves_no_file(tmp_path):
    with VideoWriter(tmp_path / "none.mp4", rate=5):
        pass
    assert not list(tmp_path.iterdir())


def test_what_is_a_video(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert all(
        is_video(word) for word in ("a.mp4", "B.MOV", "rtsp://host/stream", "https://host/a.mp4?key=1", "0", "12")
    )
    (tmp_path / "0").write_bytes(b"")
    (tmp_path / "clips.mp4").mkdir()
    assert not any(is_video(word) for word in ("a.jpg", "folder", "0", "-1", "clips.mp4", "https://host/a.jpg?size=1"))


def test_camera_is_opened_as_a_device(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(video, "CAMERAS", {"linux": ("lavfi", "testsrc=size=64x4{}:rate=5")})  # FFmpeg's test picture
    with VideoReader("8") as reader:
        frames = iter(reader)
        first, second = next(frames), next(frames)
    assert first.image.shape == (48, 64, 3) and reader.rate == 5
    assert (first.time, second.time) == (0, pytest.approx(0.2))


def test_sources_that_do_not_open_raise(file, tmp_path, monkeypatch):
    (tmp_path / "words.mp4").write_text("not a video" * 99)
    with pytest.raises(UserError, match=r"words\.mp4 cannot be read \(Invalid data .*\): expected a video that FFmpeg"):
        VideoReader(str(tmp_path / "words.mp4"))
    with pytest.raises(FileNotFoundError, match=r"The video .*none\.mp4 does not exist"):
        VideoReader(str(tmp_path / "none.mp4"))
    with pytest.raises(UserError, match=r"Camera 97 \(.*97.*\) does not open \(.*\): use the number of a connected"):
        VideoReader("97")
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(UserError, match="kerasdet opens cameras on Linux and macOS only"):
        VideoReader("0")


def test_damaged_video_yields_its_first_frames(tmp_path):
    path = tmp_path / "damaged.ts"
    with av.open(str(path), "w", format="mpegts") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for index in range(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(index, 64, 96), format="rgb24")))
        container.mux(stream.encode())
    with VideoReader(str(path)) as reader:
        whole = len(list(reader))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with VideoReader(str(path)) as reader:
        assert 0 < len(list(reader)) < whole == 10


@pytest.mark.parametrize(
    ("suffix", "reason"),
    [
        ("mkv", r"it ends after [12]\.\d of the 4\.0 seconds that its header states"),
        ("ts", "its last frame is damaged"),
    ],
)
def test_cut_video_that_can_be_read_yields_its_frames_and_raises(tmp_path, rng, suffix, reason):
    path = tmp_path / f"cut.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for _ in range(20):
            noise = rng.integers(0, 256, (64, 96, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        container.mux(stream.encode())
    with VideoReader(path) as reader:
        assert len(list(reader)) == 20
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = []
    with (
        VideoReader(path) as reader,
        pytest.raises(UserError, match=rf"cut\.{suffix} is cut off: {reason}\. Copy or rec"),
    ):
        found.extend(frame.index for frame in reader)
    assert 0 < len(found) < 20


def test_missing_package_raises(monkeypatch, file):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"av is not installed, but the video .* pip install 'kerasdet\[video\]'"):
        VideoReader(str(file))
