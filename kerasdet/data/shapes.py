"""Generates a COCO dataset of shapes with boxes, masks and keypoints, reproducibly from a seed.

Images show five kinds of shape (disk, square, triangle, star, arrow), rotated and stretched, on shaded and cluttered
backgrounds. Shapes overlap one another and the border. The colour does not reveal the kind. An arrow has four
keypoints. Left and right are seen from the tail towards the tip, so they swap in a mirrored image, like the eyes of a
person in COCO.
"""

import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as rle

from kerasdet.arguments import check_seed
from kerasdet.data.coco import CocoDataset
from kerasdet.errors import UserError
from kerasdet.paths import expand

DESCRIPTION = "kerasdet shapes, generated"
VERSION = 1  # Increase it whenever the same arguments give other images: older stored datasets then raise an error.
MIN_INSIDE = 0.55  # smallest fraction of a shape's pixels inside the image
MIN_VISIBLE = 0.3  # smallest fraction of a shape's pixels that later shapes leave visible
MAX_TRIES = 25
OVERSAMPLING = 4


def _ring(radii: list[float]) -> np.ndarray:
    """Returns a polygon whose corners alternate between the given radii, at equal angles: (V, 2) as (y, x)."""
    angles = np.arange(len(radii)) * (2 * np.pi / len(radii))
    return np.stack([-np.cos(angles), np.sin(angles)], axis=1) * np.array(radii)[:, None]


POLYGONS = {
    "disk": _ring([0.5] * 48),
    "square": _ring([0.5] * 4),
    "triangle": _ring([0.5] * 3),
    "star": _ring([0.5, 0.21] * 5),
    "arrow": np.array(
        [(-0.5, 0), (-0.04, 0.38), (-0.04, 0.14), (0.5, 0.14), (0.5, -0.14), (-0.04, -0.14), (-0.04, -0.38)]
    ),
}
KEYPOINTS = {
    "tip": (-0.42, 0.0),
    "left_wing": (-0.1, -0.28),
    "right_wing": (-0.1, 0.28),
    "tail": (0.43, 0.0),
}
SKELETON = [[1, 2], [1, 3], [1, 4]]
CATEGORIES = [
    {"id": i, "name": name, "supercategory": "shape"}
    | ({"keypoints": list(KEYPOINTS), "skeleton": SKELETON} if name == "arrow" else {})
    for i, name in enumerate(POLYGONS, start=1)
]


def write(
    folder: str | os.PathLike,
    *,
    num_images: int,
    seed: int = 0,
    image_size: tuple[int, int] = (128, 128),
    objects: tuple[int, int] = (1, 6),
    scale: tuple[float, float] = (0.2, 0.6),
) -> Path:
    """Writes a dataset of shapes, unless the folder already holds this dataset.

    Image i depends on i and all arguments except `num_images`, so a longer dataset begins with the images of a shorter
    one. For training and validation, use two folders with different seeds. The folder appears only when it is complete.

    Args:
        folder: Folder to write `images/000001.jpg`, ... and `annotations.json` to.
        num_images: Number of images, at least 1.
        seed: Seed of all images, in 0..2**32-1.
        image_size: Height and width of every image, in pixels, each at least 16.
        objects: Smallest and largest number of shapes in an image. An image gets fewer shapes if there is no space
            left.
        scale: Range of the longer side of a shape's box, as a fraction of the image's shorter side: (smallest,
            largest), in (0, 1]. The smallest fraction must amount to 6 pixels or more.

    Returns:
        Path of `annotations.json`, a COCO file. Boxes (x, y, width, height), `area` and `segmentation` (compressed RLE)
        describe the visible pixels. A keypoint is stored as the pixel that contains it, with visibility 2 (visible), 1
        (behind a later shape) or 0 (outside the image).

    Raises:
        UserError: If an argument is out of range, or the folder holds other files or a dataset with other arguments.
    """
    arguments = {
        "num_images": num_images,
        "seed": seed,
        "image_size": list(image_size),
        "objects": list(objects),
        "scale": list(scale),
    }
    _check(**arguments)
    info = {"description": DESCRIPTION, "version": VERSION, "arguments": arguments}
    folder = expand(folder)
    annotations = folder / "annotations.json"
    if _holds(folder, info):
        return annotations
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        (temporary / "images").mkdir(parents=True)
        _write_into(temporary, info)
        _move(temporary, folder, info)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return annotations


def _check(num_images, seed, image_size, objects, scale):
    if num_images < 1:
        raise UserError(f"num_images is {num_images}; expected at least 1. Increase num_images.")
    check_seed("shapes_dataset", seed)
    if len(image_size) != 2 or min(image_size) < 16:
        raise UserError(
            f"image_size is {tuple(image_size)}; expected (height, width) of at least 16 pixels each. Give a larger "
            "image_size."
        )
    if len(objects) != 2 or not 0 <= objects[0] <= objects[1]:
        raise UserError(
            f"objects is {tuple(objects)}; expected (smallest, largest) with 0 <= smallest <= largest. Change objects."
        )
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise UserError(
            f"scale is {tuple(scale)}; expected (smallest, largest) with 0 < smallest <= largest <= 1. Change scale."
        )
    if scale[0] * min(image_size) < 6:
        raise UserError(
            f"scale is {tuple(scale)}, which makes the smallest shapes shorter than 6 pixels in an image of "
            f"{tuple(image_size)}; expected 6 pixels or more. Increase scale or image_size."
        )


def _holds(folder: Path, info: dict) -> bool:
    """Returns True if the folder holds exactly this dataset, False if it is absent or empty; otherwise raises."""
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise UserError(
            f"{folder} is a file; expected a folder that is empty or does not exist yet. Name another path."
        )
    if not any(folder.iterdir()):
        return False
    try:
        found = json.loads((folder / "annotations.json").read_text()).get("info")
    except (OSError, ValueError, AttributeError):
        found = None
    if found == info:
        return True
    if isinstance(found, dict) and found.get("description") == DESCRIPTION:
        old, new = ({"version": each["version"], **each["arguments"]} for each in (found, info))
        changed = [name for name in new if old.get(name) != new[name]]
        raise UserError(
            f"{folder} holds a generated shapes dataset with {_listed(old, changed)}; expected "
            f"{_listed(new, changed)}. Use another folder, or delete this folder."
        )
    raise UserError(
        f"{folder} holds files that are not generated shapes; expected a folder that is empty or does not exist yet. "
        "Name another folder."
    )


def _listed(arguments, names):
    return ", ".join(f"{name}={arguments.get(name)}" for name in names)


def _move(temporary: Path, folder: Path, info: dict):
    """Moves the finished folder to its place, unless another process has put the same dataset there."""
    try:
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except OSError:
        if not _holds(folder, info):
            raise


def _write_into(folder: Path, info: dict):
    arguments = info["arguments"]
    height, width = arguments["image_size"]
    images, annotations = [], []
    for image_id in range(1, arguments["num_images"] + 1):
        rng = np.random.default_rng((arguments["seed"], image_id))
        picture, shapes = _scene(rng, height, width, arguments["objects"], arguments["scale"])
        name = f"{image_id:06d}.jpg"
        Image.fromarray(picture).save(folder / "images" / name, quality=95)
        images.append({"id": image_id, "file_name": name, "width": width, "height": height, "license": 1})
        annotations += [{"id": len(annotations) + i, "image_id": image_id, **s} for i, s in enumerate(shapes, start=1)]
    contents = {
        "info": info,
        "licenses": [{"id": 1, "name": "CC0-1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}],
        "images": images,
        "annotations": annotations,
        "categories": CATEGORIES,
    }
    (folder / "annotations.json").write_text(json.dumps(contents))


def _scene(rng, height, width, objects, scale) -> tuple[np.ndarray, list[dict]]:
    """Draws an image (H, W, 3) uint8 and returns it with its annotations, which have no ids yet."""
    canvas = _background(rng, height, width)
    owner = np.full((height, width), -1, np.int32)  # index of the shape that each pixel shows, -1 for background
    placed = []  # (category, whole area, keypoints)
    for _ in range(rng.integers(objects[0], objects[1] + 1)):
        category = CATEGORIES[rng.integers(len(CATEGORIES))]
        side = min(height, width) * math.exp(rng.uniform(math.log(scale[0]), math.log(scale[1])))
        shape = _place(rng, category["name"], side, owner, [area for _, area, _ in placed])
        if shape is None:
            continue
        coverage, top_left, keypoints = shape
        local, inside = _overlap(coverage, top_left, owner.shape)
        solid = coverage[inside] >= 0.5
        _paint(canvas, coverage, top_left, _fill(rng, coverage.shape, canvas[local][solid].mean(axis=0)))
        owner[local][solid] = len(placed)
        placed.append((category, np.count_nonzero(coverage >= 0.5), keypoints))
    canvas += rng.standard_normal(canvas.shape, dtype=np.float32) * rng.uniform(2, 7)
    annotations = [_annotation(i, category, points, owner) for i, (category, _, points) in enumerate(placed)]
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8), annotations


def _place(rng, name, side, owner, areas):
    """Places a shape so that enough of it and of the earlier shapes stays visible.

    Returns:
        The coverage (h, w) in [0, 1], its top-left pixel (y, x) and the keypoints (J, 2) as (y, x); None if no attempt
        succeeds.
    """
    for _ in range(MAX_TRIES):
        polygon, keypoints = _pose(rng, name, side, centre=rng.uniform((0, 0), owner.shape))
        coverage, top_left = _rasterize(polygon)
        local, inside = _overlap(coverage, top_left, owner.shape)
        solid = coverage[inside] >= 0.5
        if np.count_nonzero(solid) < MIN_INSIDE * np.count_nonzero(coverage >= 0.5):
            continue
        hidden = np.bincount(owner[local][solid] + 1, minlength=len(areas) + 1)[1:]
        visible = np.bincount(owner.ravel() + 1, minlength=len(areas) + 1)[1:]
        if np.all(visible - hidden >= MIN_VISIBLE * np.array(areas)):
            return coverage, top_left, keypoints
    return None


def _pose(rng, name, side, centre) -> tuple[np.ndarray, np.ndarray]:
    """Stretches and rotates corners and keypoints, and scales them so that the box's longer side is `side` pixels."""
    stretch = np.exp(rng.uniform(-0.15, 0.15))
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, sin], [-sin, cos]]) * [[stretch], [1 / stretch]]
    polygon = POLYGONS[name] @ turn
    keypoints = np.array(list(KEYPOINTS.values()) if name == "arrow" else []).reshape(-1, 2) @ turn
    low, high = polygon.min(axis=0), polygon.max(axis=0)
    scale = side / (high - low).max()
    offset = centre - scale * (low + high) / 2
    return polygon * scale + offset, keypoints * scale + offset


def _rasterize(polygon: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """Returns the fraction of each pixel inside the polygon (h, w), and the top left pixel (y, x) of that array."""
    low = np.floor(polygon.min(axis=0)).astype(int)
    size = np.ceil(polygon.max(axis=0)).astype(int) - low
    corners = (polygon - low) * OVERSAMPLING - 0.5  # Pillow puts integers at pixel centres.
    picture = Image.new("L", (int(size[1]) * OVERSAMPLING, int(size[0]) * OVERSAMPLING))
    ImageDraw.Draw(picture).polygon([(x, y) for y, x in corners.tolist()], fill=255)
    return np.asarray(picture.reduce(OVERSAMPLING), np.float32) / 255, (int(low[0]), int(low[1]))


def _overlap(patch: np.ndarray, top_left: tuple[int, int], size: tuple[int, int]):
    """Returns the slices of an image of `size` under the patch, and of the patch inside the image."""
    local, inside = [], []
    for start, length, limit in zip(top_left, patch.shape, size, strict=True):
        first, last = min(max(start, 0), limit), max(min(start + length, limit), 0)
        local.append(slice(first, last))
        inside.append(slice(first - start, max(last, first) - start))
    return tuple(local), tuple(inside)


def _paint(canvas, coverage, top_left, colour):
    local, inside = _overlap(coverage, top_left, canvas.shape[:2])
    canvas[local] += coverage[inside][..., None] * (
        np.broadcast_to(colour, (*coverage.shape, 3))[inside] - canvas[local]
    )


def _background(rng, height, width) -> np.ndarray:
    """Draws a gradient with blotches of two sizes and thin lines: (H, W, 3) float32."""
    base, slope = rng.uniform(60, 195) + rng.uniform(-45, 45, 3), rng.uniform(-60, 60) + rng.uniform(-30, 30, 3)
    canvas = base + _ramp(rng, height, width) * slope
    for cells, strength in ((4, 13), (14, 9)):
        canvas += _blotches(rng, height, width, cells, strength)
    canvas = canvas.astype(np.float32)
    for _ in range(rng.integers(2, 9)):
        start, angle = rng.uniform((0, 0), (height, width)), rng.uniform(0, np.pi)
        along = np.array([np.sin(angle), np.cos(angle)]) * min(height, width) * rng.uniform(0.15, 0.9)
        across = np.array([np.cos(angle), -np.sin(angle)]) * rng.uniform(0.5, 1.4)
        line = np.stack([start - across, start + across, start + along + across, start + along - across])
        coverage, top_left = _rasterize(line)
        _paint(canvas, coverage * rng.uniform(0.4, 0.9), top_left, rng.uniform(40, 215) + rng.uniform(-40, 40, 3))
    return canvas


def _fill(rng, size, local_colour) -> np.ndarray:
    """Draws a shaded, blotched colour at a moderate distance from the colour it covers: (h, w, 3)."""
    while True:
        direction = rng.standard_normal(3)
        colour = np.clip(local_colour + direction / np.linalg.norm(direction) * rng.uniform(75, 140), 15, 240)
        if np.linalg.norm(colour - local_colour) > 65:
            break
    shade = _ramp(rng, *size) * rng.uniform(-45, 45)
    return (colour + shade + _blotches(rng, *size, cells=4, strength=7)).astype(np.float32)


def _ramp(rng, height, width) -> np.ndarray:
    """Draws a linear ramp in a random direction, from about -0.5 to 0.5: (H, W, 1)."""
    angle = rng.uniform(0, 2 * np.pi)
    rows = np.linspace(-0.5, 0.5, height)[:, None, None] * np.sin(angle)
    return rows + np.linspace(-0.5, 0.5, width)[None, :, None] * np.cos(angle)


def _blotches(rng, height, width, cells, strength) -> np.ndarray:
    """Draws smooth colour noise of `cells` x `cells` patches with standard deviation `strength`: (H, W, 3)."""
    coarse = np.clip(rng.standard_normal((cells, cells, 3)) * 40 + 128, 0, 255).astype(np.uint8)
    fine = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return (np.asarray(fine, np.float32) - 128) * (strength / 40)


def _annotation(index, category, keypoints, owner) -> dict:
    visible = owner == index
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    box = columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]
    segmentation = rle.encode(np.asfortranarray(visible, np.uint8))
    annotation = {
        "category_id": category["id"],
        "bbox": [int(v) for v in box],
        "area": int(np.count_nonzero(visible)),
        "iscrowd": 0,
        "segmentation": {"size": segmentation["size"], "counts": segmentation["counts"].decode("ascii")},
    }
    if len(keypoints):
        points = [_keypoint(index, math.floor(y), math.floor(x), owner) for y, x in keypoints.tolist()]
        annotation["keypoints"] = [v for point in points for v in point]
        annotation["num_keypoints"] = sum(point[2] > 0 for point in points)
    return annotation


def _keypoint(index, y, x, owner) -> tuple[int, int, int]:
    """Returns COCO's (x, y, visibility) of a point in the given pixel."""
    height, width = owner.shape
    if not (0 <= y < height and 0 <= x < width):
        return 0, 0, 0
    return x, y, 1 if owner[y, x] > index else 2


def shapes_dataset(
    folder: str | os.PathLike,
    *,
    num_images: int,
    seed: int = 0,
    image_size: tuple[int, int] = (128, 128),
    scale: tuple[float, float] = (0.2, 0.6),
    masks: bool = False,
    keypoints: bool = False,
) -> CocoDataset:
    """Opens the dataset of generated shapes in a folder; generates it on first use.

    Args:
        folder: Folder of the dataset.
        num_images: Number of images, at least 1.
        seed: Seed of all images, in 0..2**32-1.
        image_size: Height and width of every image, in pixels, each at least 16.
        scale: Range of the longer side of a shape's box, as a fraction of the image's shorter side: (smallest,
            largest), in (0, 1]. The smallest fraction must amount to 6 pixels or more.
        masks: Whether to read the masks.
        keypoints: Whether to read the keypoints of the arrows.

    Returns:
        The dataset of generated shapes.

    Raises:
        UserError: If an argument is out of range, or the folder holds other files or a dataset with other arguments.
    """
    path = write(folder, num_images=num_images, seed=seed, image_size=image_size, scale=scale)
    return CocoDataset(path, masks=masks, keypoints=keypoints)
