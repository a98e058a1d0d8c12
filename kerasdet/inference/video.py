"""Reads frames of video files, streams and cameras, and writes videos, with PyAV (pip install 'kerasdet[video]')."""

import contextlib
import dataclasses
import math
import os
import sys
from collections.abc import Iterator
from fractions import Fraction
from numbers import Real
from pathlib import Path

import numpy as np

from kerasdet.data.images import SUFFIXES as IMAGES
from kerasdet.errors import UserError, require_extra
from kerasdet.files import writing
from kerasdet.paths import expand, make_folder, why_no_file

SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv")
# Beginning of sys.platform -> FFmpeg's input format and the device name of a camera
CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}:none")}
WRITTEN_BY = "written by kerasdet"  # comment in the files of `VideoWriter` and in pictures
_CLOCK = 90_000  # ticks per second in written videos; a multiple of all usual frame rates
_FALLBACK_RATE = Fraction(25)
_MAX_MISSING = (0.5, 0.01)  # seconds, and fraction of the stated length, that whole files may lack


@dataclasses.dataclass(frozen=True)
class Frame:
    """Holds one frame of a video.

    Args:
        image: (H, W, 3) uint8 RGB, after applying the rotation in the video's metadata.
        index: Index of the frame, from 0.
        time: Seconds since the first frame.
    """

    image: np.ndarray
    index: int
    time: float


def is_video(word: str) -> bool:
    """Tells whether a command-line argument is a video: a file with a video suffix, a URL, or a camera number.

    Args:
        word: Argument such as "street.mp4", "rtsp://host/stream" or "0". If a file or folder named "0" exists, "0" is
            not a camera. The URL of an image is not a video.

    Returns:
        True if `VideoReader` should open the argument.
    """
    if "://" in word:
        return Path(word.partition("?")[0]).suffix.lower() not in IMAGES
    return is_camera(word) or is_file_of_video(word)


def is_file_of_video(word: str) -> bool:
    """Tells whether a path has the suffix of a video file, such as ".mp4", and is not a folder.

    Args:
        word: Path of a file.

    Returns:
        True if the path has such a suffix. The file need not exist.
    """
    return Path(word).suffix.lower() in SUFFIXES and not Path(word).is_dir()


def is_camera(word: str) -> bool:
    """Tells whether a command-line argument is the number of a camera, and no file or folder has this name.

    Args:
        word: Argument such as "0".

    Returns:
        True for the number of a camera.
    """
    return word.isascii() and word.isdecimal() and not os.path.exists(word)


class VideoReader:
    """Opens a video and reads its frames one by one.

    Args:
        source: Path of a video file, in which ``~`` is expanded; a URL such as "rtsp://host/stream"; or the number of a
            camera, such as 0 or "0".

    Attributes:
        rate: Average number of frames per second; 25 if the video does not state it.

    Raises:
        UserError: If PyAV is not installed, or the source cannot be opened or has no video stream.
        FileNotFoundError: If the file does not exist.

    Example:
        >>> with VideoReader("street.mp4") as video:
        ...     for frame in video:
        ...         print(frame.time, model.detect(frame.image))
    """

    def __init__(self, source: str | os.PathLike | int):
        self._av = require_extra("av", f"the video {source}", "video")
        self.source = source = str(source)
        self._container = self._open_camera() if is_camera(source) else self._open_file()
        if not self._container.streams.video:
            self._container.close()
            raise UserError(
                f"{source} has no video stream, or it is cut off: expected a file with pictures, such as an MP4 file. "
                "Copy it again, or use another file."
            )
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self.rate = float(self._stream.average_rate or self._stream.guessed_rate or _FALLBACK_RATE)

    def _open_camera(self):
        platform = next((name for name in CAMERAS if sys.platform.startswith(name)), None)
        if platform is None:
            raise UserError(
                f"Camera {self.source} cannot be opened on this system: kerasdet opens cameras on Linux and macOS "
                "only. Use a video file or a URL."
            )
        form, device = CAMERAS[platform]
        try:
            return self._av.open(device.format(self.source), format=form)
        except (self._av.FFmpegError, OSError, ValueError) as error:
            raise UserError(
                f"Camera {self.source} ({device.format(self.source)}) does not open ({_reason(error)}): use the "
                "number of a connected camera that no other program uses."
            ) from None

    def _open_file(self):
        is_url = "://" in self.source
        path = None if is_url else expand(self.source, "The path of a video")
        if path is not None and (reason := why_no_file(path)):
            raise FileNotFoundError(
                f"The video {path} {reason}: expected the path of a video file, a URL or the number of a camera."
            )
        try:
            # Without "file:", FFmpeg would read "night: 1.mp4" as a URL with the protocol "night".
            return self._av.open(self.source if is_url else f"file:{path}")
        except (self._av.FFmpegError, OSError, ValueError) as error:
            raise UserError(
                f"The video {self.source} cannot be read ({_reason(error)}): expected a video that FFmpeg can read, "
                "such as an MP4 file. Convert it, or use another file."
            ) from None

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *_):
        self._container.close()

    def __iter__(self) -> Iterator[Frame]:
        """Yields the frames.

        Raises:
            UserError: If the video has no frames, or cannot be decoded to the end.
        """
        index, start, last, longest, is_whole = 0, None, 0.0, 0.0, True
        self._end = 0.0
        try:
            for picture in self._pictures():
                time = index / self.rate if picture.time is None else picture.time
                start = time if start is None else start
                image = _upright(picture.to_ndarray(format="rgb24"), picture)
                yield Frame(np.ascontiguousarray(image), index, time - start)
                longest, last, is_whole = max(longest, time - start - last), time - start, not picture.is_corrupt
                index += 1
        except self._av.FFmpegError as error:
            raise UserError(
                f"The video {self.source} is damaged after {index} frames ({_reason(error)}): copy or record it again."
            ) from None
        if not index:
            raise UserError(
                f"The video {self.source} has no frames: expected at least one. Copy or record the video again."
            )
        self._check_end(is_whole, longest)

    def _pictures(self):
        """Yields the decoded pictures, and keeps the time at which the packets of all streams end in `_end`."""
        for packet in self._container.demux():
            if packet.pts is not None:
                self._end = max(self._end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream.index == self._stream.index:
                yield from packet.decode()

    def _check_end(self, is_whole, longest):
        """Raises an error if a file ends early: cut files of MKV, AVI and TS can be read without an error.

        Args:
            is_whole: Whether the last picture was decoded without an error.
            longest: Longest time between two pictures, in seconds; the last one may be shown as long.
        """
        if is_camera(self.source) or "://" in self.source:
            return
        stated = (self._container.duration or 0) / self._av.time_base
        end = self._end  # not minus the time of the first picture, which MKV files include in their length
        seconds, fraction = _MAX_MISSING
        if stated - end > max(seconds, fraction * stated, 2 * longest):
            reason = f"it ends after {end:.1f} of the {stated:.1f} seconds that its header states"
        elif not is_whole:
            reason = "its last frame is damaged"
        else:
            return
        raise UserError(f"The video {self.source} is cut off: {reason}. Copy or record it again.")


def _upright(image, picture):
    """Turns and mirrors the image of a frame as the matrix in the video's metadata tells, like players do."""
    matrix = picture.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()  # x' = a x + c y, y' = b x + d y
    if abs(b) > abs(a):
        image, a, d = image.swapaxes(0, 1), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


class VideoWriter:
    """Writes pictures as an H.264 video without sound, in an MP4 file that browsers and players can play.

    The video is written to a temporary file, which is renamed when it is complete. H.264 needs even widths and heights,
    so the last column or row of odd sizes is repeated.

    Args:
        path: Path of the file to write, ending in .mp4.
        rate: Average number of frames per second.

    Raises:
        UserError: If PyAV is not installed, `path` is not a local path, or `rate` is not a positive number.
        OSError: If the folder cannot be created or written to.
    """

    def __init__(self, path: str | os.PathLike, rate: float):
        self._av = require_extra("av", f"the video {path}", "video")
        self.path = expand(path, "The path of a video")
        if not isinstance(rate, Real) or not 0 < rate < math.inf:
            raise UserError(f"VideoWriter.rate is {rate!r}: expected frames per second, a number above 0.")
        self._partial = self.path.with_name(f".partial_{self.path.name}")
        make_folder(self.path.parent, "The folder of a video")
        self._container = self._av.open(f"file:{self._partial}", "w", format="mp4")
        self._container.metadata["comment"] = WRITTEN_BY
        self._rate = Fraction(rate).limit_denominator(1001)
        self._stream, self._last = None, -1

    def _start(self, height, width):
        stream = self._container.add_stream("libx264", rate=self._rate, options={"crf": "20", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, _CLOCK)
        return stream

    def write(self, image: np.ndarray, time: float) -> None:
        """Appends a picture.

        Args:
            image: (H, W, 3) uint8 RGB. It is resized if its size differs from that of the first picture.
            time: Time at which the picture appears, in seconds since the beginning of the video. A time that is not
                after the previous picture is replaced by the next possible time.

        Raises:
            UserError: If the picture has another shape or type, or the time is not finite.
            OSError: If the file cannot be written, for example because the disk is full. The temporary file is then
                deleted.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise UserError(
                f"A picture for {self.path} has the shape {image.shape} and the type {image.dtype}: expected RGB, "
                "(height, width, 3) uint8. Convert the picture."
            )
        if not math.isfinite(time):
            raise UserError(
                f"The time of a picture for {self.path} is {time!r}: expected seconds. Pass a finite number."
            )
        height, width = image.shape[:2]
        image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
        self._stream = self._stream or self._start(*image.shape[:2])
        picture = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        if (picture.width, picture.height) != (self._stream.width, self._stream.height):  # a stream can change its size
            picture = picture.reformat(self._stream.width, self._stream.height)
        self._last = max(self._last + 1, round(time * _CLOCK))
        picture.pts, picture.time_base = self._last, Fraction(1, _CLOCK)
        with self._deleting_on_failure():
            self._container.mux(self._stream.encode(picture))

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Completes the file. If no picture was written, no file is created.

        If the writer is closed early, such as after Ctrl-C, the file contains the pictures written so far. Later calls
        do nothing.

        Raises:
            OSError: If the file cannot be written, for example because the disk is full. The temporary file is then
                deleted.
        """
        if self._container is None:
            return
        with self._deleting_on_failure():
            is_empty = self._last < 0
            if not is_empty:
                self._container.mux(self._stream.encode())
            container, self._container = self._container, None
            container.close()
            if is_empty:
                self._partial.unlink(missing_ok=True)
            else:
                os.replace(self._partial, self.path)

    @contextlib.contextmanager
    def _deleting_on_failure(self):
        """Deletes the temporary file if the block raises an error, which then names the file."""
        try:
            with writing(self.path):
                yield
        except OSError:
            if self._container is not None:
                with contextlib.suppress(OSError):
                    self._container.close()
            self._container = None
            self._partial.unlink(missing_ok=True)
            raise


def _reason(error):
    return " ".join(str(getattr(error, "strerror", None) or error).split()).rstrip(".")
