"""Implements ``kerasdet predict``: detections in images and videos as a table, JSON, drawings, crops and COCO files."""

import contextlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from kerasdet.cli.predict_outputs import CocoFile, is_drawing, records, save_crops, save_picture
from kerasdet.data import images as image_ops
from kerasdet.errors import UserError, require_extra
from kerasdet.inference import Detections, Predictor, Tracker, VideoReader, VideoWriter
from kerasdet.inference.video import Frame, is_camera, is_video


def predict(
    predictor: Predictor,
    paths: Sequence[str],
    *,
    score_threshold: float,
    draw: str | None = None,
    crops: str | None = None,
    coco: str | None = None,
    track: bool = False,
    max_frames: int | None = None,
    as_json: bool = False,
) -> None:
    """Detects objects in images and in the frames of videos one by one, and prints the detections.

    Args:
        predictor: A Keras model, an export or a `TiledPredictor`.
        paths: Paths of images or videos, video URLs, or camera numbers.
        score_threshold: Detections with a score at or below this are dropped. In [0, 1].
        draw: Existing folder for images and videos with drawn detections. None: nothing is drawn.
        crops: Folder for pictures of the detected objects, with one subfolder per class. None: no pictures are written.
        coco: Path of a file for all detections as a COCO dataset with scores. None: no file is written.
        track: Whether objects of videos get ids that stay the same from frame to frame.
        max_frames: Stops each video after this many frames. None: videos are read to the end.
        as_json: Whether to print one JSON array instead of a table.

    Raises:
        UserError: If images or videos cannot be read. The detections in the other images and videos are printed first.
    """
    own_threshold = _own_threshold(predictor)
    if own_threshold is not None and score_threshold < own_threshold:
        print(
            f"The model itself drops detections with a score of {own_threshold:g} or less, so --score-threshold "
            f"{score_threshold:g} has the same effect as {own_threshold:g}.",
            file=sys.stderr,
        )
    names = _names(paths)
    coco_file = None if coco is None else CocoFile(coco, predictor)
    entries = []
    for path, name in zip(paths, names, strict=True):
        tracker = None
        try:
            with contextlib.closing(_Drawing(draw, name)) as drawing:
                for frame, rate in _frames(path, max_frames):
                    found = predictor.detect(frame.image)
                    if track and rate is not None:
                        tracker = tracker or Tracker(rate, score_threshold)
                        found = tracker.update(found)
                    reason = _reason_for_none(found, score_threshold, own_threshold) if rate is None else ""
                    found = found.filter(score=score_threshold)
                    entries.append({**_place(path, frame, rate), "detections": records(found)})
                    part = name if rate is None else f"{name}/frame_{frame.index:06d}"
                    drawing.add(found, frame, rate)
                    if crops is not None:
                        save_crops(found, frame.image, Path(crops), part.replace("/", "_"))
                    if coco_file is not None:
                        coco_file.add(found, path if rate is None else f"{part}.png")
                    if not as_json:
                        _print_entry(entries[-1], reason)
        except _Unreadable as error:
            entries.append({"video" if is_video(path) else "image": path, "error": " ".join(str(error).split())})
            if not as_json:
                _print_entry(entries[-1])
        except KeyboardInterrupt:
            if not is_video(path):
                raise
            print(f"Interrupted: {path} ends here. The output up to this point is complete.", file=sys.stderr)
            break
    if coco_file is not None:
        coco_file.write()
    if as_json:
        print(json.dumps(entries, indent=1))
    errors = [entry["error"] for entry in entries if "error" in entry]
    if errors:
        kinds = {"videos" if is_video(path) else "images" for path in paths}
        listed = "; ".join(dict.fromkeys(errors[:_MAX_REASONS])) + ("; ..." if len(errors) > _MAX_REASONS else "")
        raise UserError(f"{len(errors)} of {len(paths)} {' and '.join(sorted(kinds))} could not be read: {listed}")


_MAX_REASONS = 5


class _Unreadable(Exception):
    """Signals that an image or video cannot be read, or that a video cannot be read to the end."""


class _Drawing:
    """Draws detections: a PNG for an image, an MP4 file for a video."""

    def __init__(self, folder, name):
        self.folder = None if folder is None else Path(folder)
        self.name = name
        self.writer = None

    def add(self, found: Detections, frame: Frame, rate: float | None) -> None:
        """Draws one image, or one frame of a video of `rate` frames per second."""
        if self.folder is None:
            return
        scale = 2 if max(found.image_size) < 400 else 1  # names stay legible in small images
        picture = found.draw(frame.image, scale=scale)
        if rate is None:
            save_picture(picture, self.folder / f"{self.name}.png")
        else:
            self.writer = self.writer or VideoWriter(self.folder / f"{self.name}.mp4", rate)
            self.writer.write(picture, frame.time)

    def close(self) -> None:
        """Completes the video."""
        if self.writer is not None:
            self.writer.close()


def _frames(path, max_frames) -> Iterator[tuple[Frame, float | None]]:
    """Yields an image, or the frames of a video, with the video's frames per second (None for an image).

    Raises:
        _Unreadable: If the image or video cannot be read. A damaged video first yields the frames before the damage.
    """
    try:
        if not is_video(path):
            yield Frame(image_ops.read(path), 0, 0.0), None
            return
        with VideoReader(path) as video:
            for frame in video:
                yield frame, video.rate
                if max_frames is not None and frame.index + 1 >= max_frames:
                    return
    except (OSError, ValueError) as error:
        raise _Unreadable(str(error)) from None


def _own_threshold(predictor):
    """Returns the score at or below which the model itself drops detections, or None if it is unknown."""
    while hasattr(predictor, "model") and not hasattr(predictor, "postprocessing"):
        predictor = predictor.model  # a `TiledPredictor` has the model as an attribute
    return getattr(getattr(predictor, "postprocessing", None), "score_threshold", None)


def check_options(paths: Sequence[str], *, draw: str | None, track: bool, max_frames: int | None) -> None:
    """Checks the options of `predict` before a model is loaded.

    Args:
        paths: Paths of images or videos, video URLs, or camera numbers.
        draw: Folder for images and videos with drawn detections. None: nothing is drawn.
        track: Whether objects of videos get ids.
        max_frames: Stops each video after this many frames. None: videos are read to the end.

    Raises:
        UserError: If an option would have no effect, a package is missing, or a drawing would replace an input or
            another file that kerasdet did not write.
    """
    videos = [path for path in paths if is_video(path)]
    for option, is_given in (("--track", track), ("--max-frames", max_frames is not None)):
        if is_given and not videos:
            raise UserError(f"{option} is for videos, but only images are given: pass a video, or remove {option}.")
    if videos:
        require_extra("av", f"the video {videos[0]}", "video")
    if track:
        Tracker(rate=1)  # imports its packages, which may be missing
    if draw is None:
        return
    inputs = {Path(path).resolve(): path for path in paths}
    for path, name in zip(paths, _names(paths), strict=True):
        drawing = Path(draw) / f"{name}.{_suffix(path)}"
        if (found := inputs.get(drawing.resolve())) is not None:
            kind = "video" if is_video(found) else "image"
            raise UserError(f"--draw {draw} would overwrite the {kind} {found}: choose another folder.")
        if drawing.exists() and not is_drawing(drawing):
            raise UserError(
                f"--draw {draw} would overwrite {drawing}, which kerasdet did not write: choose another folder."
            )


def _suffix(path):
    return "mp4" if is_video(path) else "png"


def _names(paths):
    """Returns a name for the output files of each image or video; equal names get a number."""
    stems = [f"camera{path}" if is_camera(path) else re.sub(r"[^\w.,+ -]", "_", Path(path).stem) for path in paths]
    names: list[str] = []
    single = {stem for stem, count in Counter(stem.casefold() for stem in stems).items() if count == 1}
    for index, stem in enumerate(stems):
        name = stem if stem.casefold() in single else f"{index:03d}_{stem}"
        while stem.casefold() not in single and name.casefold() in single:  # another file already has this name
            name = f"_{name}"
        names.append(name)
    return names


def _place(path, frame, rate):
    return {"image": path} if rate is None else {"video": path, "frame": frame.index, "time": round(frame.time, 4)}


def _reason_for_none(found, score_threshold, own_threshold):
    """Returns why no detection of an image is above the threshold, to print after "0 objects"."""
    if len(found):
        best = found.scores.max()
        text = f"; the best score, {best:.3f}, is not above --score-threshold {score_threshold:g}"
        return "" if best > score_threshold else text
    return "" if own_threshold is None else f"; the model itself drops scores of {own_threshold:g} or less"


def _print_entry(entry, reason=""):
    where = entry.get("image") or entry["video"]
    if "error" in entry:
        print(f"{where}: not read")
        return
    if "frame" in entry:
        where += f" frame {entry['frame']} ({entry['time']:.2f} s)"
    print(f"{where}: {len(entry['detections'])} objects{reason}")
    for record in entry["detections"]:
        y1, x1, y2, x2 = record["box"]
        name = record["label"] + (f" #{record['track_id']}" if record.get("track_id") is not None else "")
        numbers = {key: value for key, value in record.get("extras", {}).items() if isinstance(value, int | float)}
        extras = "".join(f"   {key} {value:.4g}" for key, value in numbers.items())
        print(f"  {name:<20} {record['score']:.3f}   y {y1:7.1f} to {y2:7.1f}   x {x1:7.1f} to {x2:7.1f}{extras}")
