"""Draws detections on images, grids of images, and curves of training runs."""

import bisect
import colorsys
import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

# The palette of Okabe and Ito without black, whose colours people with any kind of colour vision can distinguish.
PALETTE = (
    (230, 159, 0),
    (86, 180, 233),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (240, 228, 66),
    (0, 114, 178),
)
INK, PALE, PAPER, SHADOW = (40, 40, 40), (226, 226, 226), (255, 255, 255), (0, 0, 0, 100)
Colour = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]  # (top, left, bottom, right), integers


def colour(class_id: int) -> Colour:
    """Returns the colour of a class.

    The first classes get the colours of `PALETTE`. The hues of the other classes are spread by the golden ratio.

    Args:
        class_id: Class id from 0.

    Returns:
        The colour (red, green, blue) in 0..255.
    """
    if class_id < len(PALETTE):
        return PALETTE[class_id]
    extra = class_id - len(PALETTE)
    hue = (0.9 + extra * 0.6180339887) % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.85, 0.55, 0.7)[extra % 3], (0.9, 0.95, 0.65)[extra % 3])
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[str] | None = None,
    scores: np.ndarray | None = None,
    class_ids: np.ndarray | None = None,
    *,
    masks: np.ndarray | None = None,
    keypoints: np.ndarray | None = None,
    skeleton: Sequence[tuple[int, int]] = (),
    scale: int = 1,
) -> np.ndarray:
    """Draws boxes with name tags, masks and keypoints on a copy of an image; objects with higher scores are on top.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: (N, 4) yxyx in pixels of `image`, before enlargement by `scale`.
        labels: N names, one per box. None: no names.
        scores: (N,) scores, written after the names with two decimals. None: no scores.
        class_ids: (N,) int class ids, which select the colours. Boxes with class id -1 are padding and are not drawn.
            None: all boxes have the colour of class 0.
        masks: (N, H, W) bool, the masks of the objects. None: no masks.
        keypoints: (N, J, 3), J keypoints (y, x, score or visibility) of each object, in pixels of `image`. A keypoint
            whose score or visibility is at most 0 is not drawn. None: no keypoints.
        skeleton: Pairs of keypoint indices from 0. A line connects a pair if both keypoints are drawn.
        scale: Integer factor by which the image is enlarged before drawing, so that names on small images are legible.

    Returns:
        The drawing, (H * scale, W * scale, 3) uint8 RGB.

    Raises:
        ValueError: If an argument has a wrong type or shape.

    Example:
        >>> detections = model.detect("street.jpg")
        >>> image = np.array(PIL.Image.open("street.jpg").convert("RGB"))
        >>> picture = draw_boxes(image, detections.boxes, scores=detections.scores, class_ids=detections.class_ids)
        >>> PIL.Image.fromarray(picture).save("street_detections.png")
    """
    _check_image(image)
    if not isinstance(scale, int) or scale < 1:
        raise ValueError(f"scale is {scale!r}: expected a positive integer.")
    boxes, scores, class_ids = _check_boxes(boxes, labels, scores, class_ids)
    masks = _check_rows((len(boxes), *image.shape[:2]), masks=masks)
    keypoints = _check_rows((len(boxes), None, 3), keypoints=keypoints)
    if keypoints is not None and not all(0 <= j < keypoints.shape[1] for pair in skeleton for j in pair):
        raise ValueError(
            f"skeleton is {skeleton}: expected pairs of keypoint indices from 0 to {keypoints.shape[1] - 1}."
        )
    height, width = image.shape[0] * scale, image.shape[1] * scale
    picture = Image.fromarray(image)
    if scale > 1:
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    order = np.argsort(scores if scores is not None else np.zeros(len(boxes)), kind="stable")
    order = [i for i in order.tolist() if class_ids[i] >= 0]
    colours = [colour(max(k, 0)) for k in class_ids.tolist()]
    line = max(1, round(max(height, width) / 256))
    for i in order:
        if masks is not None:
            _draw_mask(picture, masks[i], colours[i])
    for i in order:
        _draw_frame(picture, boxes[i] * scale, colours[i], line)
    for i in order:
        if keypoints is not None:
            _draw_keypoints(picture, keypoints[i] * (scale, scale, 1), skeleton, colours[i], line)
    texts = _texts(len(boxes), labels, scores)
    named = [i for i in order if texts[i]]
    _draw_tags(picture, [boxes[i] * scale for i in named], [texts[i] for i in named], [colours[i] for i in named])
    return np.array(picture)


def grid(images: Sequence[np.ndarray], columns: int, *, titles: Sequence[str] = ()) -> np.ndarray:
    """Tiles images row by row on a white background.

    Each image is centred in its cell. All cells have the largest height and the largest width of the images.

    Args:
        images: Images (H, W, 3) uint8 RGB of any sizes, at least one.
        columns: Number of images per row, at least 1.
        titles: Titles of the columns, written above the columns; empty for none.

    Returns:
        The tiled images, (H, W, 3) uint8 RGB.

    Raises:
        ValueError: If there are no images, an image has a wrong type or shape, or the number of titles is not the
            number of columns.
    """
    if not len(images) or columns < 1:
        raise ValueError(f"grid got {len(images)} images and {columns} columns: expected at least one of each.")
    if titles and len(titles) != columns:
        raise ValueError(f"There are {len(titles)} titles for {columns} columns: pass one title per column.")
    for image in images:
        _check_image(image)
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    gap = max(2, round(max(height, width) / 80))
    font = _font(max(12, round(width / 24)))
    top = gap + (_text_height(font) + gap if titles else 0)
    rows = math.ceil(len(images) / columns)
    picture = Image.new("RGB", (columns * (width + gap) + gap, top + rows * (height + gap)), PAPER)
    for i, image in enumerate(images):
        y = top + i // columns * (height + gap) + (height - image.shape[0]) // 2
        x = gap + i % columns * (width + gap) + (width - image.shape[1]) // 2
        picture.paste(Image.fromarray(image), (x, y))
    for i, title in enumerate(titles):
        middle = gap + i * (width + gap) + width / 2
        ImageDraw.Draw(picture).text((middle, top / 2), title, fill=INK, font=font, anchor="mm")
    return np.array(picture)


def draw_curve(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    size: tuple[int, int] = (640, 400),
) -> np.ndarray:
    """Draws a line chart with ticks and grid and, for several curves, a legend.

    Args:
        series: Maps the name of each curve to its points (x, y), which are connected in this order. A non-finite point
            leaves a gap.
        title: Text above the chart.
        x_label: Text below the horizontal axis.
        y_label: Text above the vertical axis.
        size: Width and height of the picture in pixels, at least 200 x 150.

    Returns:
        The chart, (height, width, 3) uint8 RGB.

    Raises:
        ValueError: If no point is finite, or the size is too small.

    Example:
        >>> picture = draw_curve({"loss": [(0, 2.1), (100, 1.4)]}, title="run", x_label="step", y_label="loss")
    """
    lines = {name: np.asarray(points, np.float64).reshape(-1, 2) for name, points in series.items()}
    points = np.concatenate([np.zeros((0, 2)), *lines.values()])
    points = points[np.isfinite(points).all(axis=1)]
    if not len(points):
        raise ValueError(f"The chart '{title}' has no finite point: expected at least one. Check the values for NaN.")
    width, height = size
    if width < 200 or height < 150:
        raise ValueError(f"size is {width} x {height}: expected (width, height) of at least 200 x 150 pixels.")
    body, head = _font(max(11, round(width / 52))), _font(max(13, round(width / 42)))
    x_ticks, x_names = _ticks(points[:, 0], count=max(3, width // 100))
    y_ticks, y_names = _ticks(points[:, 1], count=max(3, height // 70))
    pad, row = _text_height(body) // 2, _text_height(body)
    left = round(max(body.getlength(name) for name in y_names)) + 2 * pad
    right = width - 2 * pad - round(body.getlength(x_names[-1]) / 2)
    top, bottom = _text_height(head) + row + 3 * pad, height - 2 * row - 2 * pad

    def place(x, y):
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        return left + across * (right - left), bottom - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (bottom - top)

    picture = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(picture)
    for value, name in zip(x_ticks, x_names, strict=True):
        x, _ = place(value, y_ticks[0])
        draw.line([(x, top), (x, bottom + pad // 2)], fill=PALE)
        draw.text((x, bottom + pad), name, fill=INK, font=body, anchor="ma")
    for value, name in zip(y_ticks, y_names, strict=True):
        _, y = place(x_ticks[0], value)
        draw.line([(left - pad // 2, y), (right, y)], fill=PALE)
        draw.text((left - pad, y), name, fill=INK, font=body, anchor="rm")
    draw.line([(left, top), (left, bottom), (right, bottom)], fill=INK)
    draw.text((width / 2, pad), title, fill=INK, font=head, anchor="ma")
    draw.text(((left + right) / 2, height - pad), x_label, fill=INK, font=body, anchor="md")
    draw.text((pad, top - pad), y_label, fill=INK, font=body, anchor="ld")
    for i, values in enumerate(lines.values()):
        _draw_line(picture, [place(x, y) for x, y in values], colour(i), max(2, round(width / 300)))
    if len(lines) > 1:
        _draw_legend(picture, list(lines), body, (left + pad, top + pad, right - pad, bottom - pad), points, place)
    return np.array(picture)


def _check_image(image):
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image is {_describe(image)}: expected a NumPy array (H, W, 3) of uint8 in RGB.")


def _describe(value) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    return type(value).__name__


def _check_boxes(boxes, labels, scores, class_ids):
    boxes = np.asarray(boxes)
    if boxes.size == 0:
        boxes = np.zeros((0, 4))
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype.kind not in "fiu":
        raise ValueError(f"boxes is {_describe(boxes)}: expected numbers of shape (N, 4) as (y1, x1, y2, x2).")
    if not np.isfinite(boxes).all():
        raise ValueError("boxes has a value that is NaN or infinite: expected finite numbers.")
    if isinstance(labels, str):
        raise ValueError(f"labels is the string {labels!r}: expected a list with one name per box.")
    for name, values in (("labels", labels), ("scores", scores), ("class_ids", class_ids)):
        if values is not None and (isinstance(values, str) or len(values) != len(boxes)):
            raise ValueError(f"{name} has {len(values)} entries for {len(boxes)} boxes: expected one entry per box.")
    class_ids = np.zeros(len(boxes), int) if class_ids is None else np.asarray(class_ids, int)
    return boxes.astype(np.float64), None if scores is None else np.asarray(scores, np.float64), class_ids


def _check_rows(shape, **arrays):
    """Checks the shape of one array, a keyword argument; None in `shape` stands for any length.

    Returns:
        The array, or None if there is nothing to draw.
    """
    [(name, values)] = arrays.items()
    if values is None or not shape[0]:
        return None
    values = np.asarray(values)
    if values.ndim != len(shape) or any(
        want not in (None, have) for have, want in zip(values.shape, shape, strict=True)
    ):
        wanted = ", ".join("J" if n is None else str(n) for n in shape)
        raise ValueError(f"{name} has the shape {values.shape}: expected ({wanted}) for these boxes and this image.")
    return values


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size)


def _text_height(font) -> int:
    return sum(font.getmetrics())


def _texts(count, labels, scores) -> list[str]:
    names = [""] * count if labels is None else list(labels)
    numbers = [""] * count if scores is None else [f"{score:.2f}" for score in scores]
    return [f"{name} {number}".strip() for name, number in zip(names, numbers, strict=True)]


def _draw_mask(picture, mask, fill):
    """Tints the mask and draws a line along its inner border."""
    shape = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))
    if shape.size != picture.size:
        blur = ImageFilter.GaussianBlur(0.5 * picture.width / shape.width)
        shape = shape.resize(picture.size, Image.Resampling.BICUBIC).filter(blur)
    solid = np.pad(np.asarray(shape) >= 128, 1)
    inner = solid[:-2, 1:-1] & solid[2:, 1:-1] & solid[1:-1, :-2] & solid[1:-1, 2:]
    solid = solid[1:-1, 1:-1]
    opacity = np.where(solid, 0.4, 0) + np.where(solid & ~inner, 0.5, 0)
    picture.paste(fill, (0, 0), Image.fromarray(np.rint(opacity * 255).astype(np.uint8)))


def _draw_frame(picture, box, fill, line):
    """Draws a frame with a thin shadow. Its outer edge is the box, rounded to pixels and clipped to the image."""
    top, left, bottom, right = _visible(box, picture.size)
    if top < bottom and left < right:
        draw = ImageDraw.Draw(picture, "RGBA")
        draw.rectangle((left - 1, top - 1, right, bottom), outline=SHADOW)
        draw.rectangle((left, top, right - 1, bottom - 1), outline=fill, width=line)


def _visible(box, size) -> Rectangle:
    """Returns the part of a box inside the image in whole pixels, at least one pixel unless the box is outside."""
    width, height = size
    top, left, bottom, right = (math.floor(v + 0.5) for v in box.tolist())
    bottom, right = max(bottom, top + 1), max(right, left + 1)
    return max(top, 0), max(left, 0), min(bottom, height), min(right, width)


def _draw_keypoints(picture, points, skeleton, fill, line):
    radius = 1.25 * line + 1
    drawn = points[:, 2] > 0
    for a, b in skeleton:
        if drawn[a] and drawn[b]:
            for stroke, width in ((PAPER, line + 2), (fill, line)):
                _draw_line(picture, [points[a, 1::-1], points[b, 1::-1]], stroke, width)
    for i, (y, x, _) in enumerate(points):
        if drawn[i]:
            _draw_dot(picture, (x, y), radius + 1, PAPER)
            _draw_dot(picture, (x, y), radius, colour(i))


def _draw_dot(picture, centre, radius, fill):
    def stroke(draw, points, r):
        (x, y), *_ = points
        draw.ellipse((x - r, y - r, x + r, y + r), fill=255)

    _smooth(picture, [centre], radius, fill, stroke)


def _draw_line(picture, points, fill, width):
    """Draws a line through (x, y) points; a non-finite point interrupts it, and a single point becomes a dot."""
    run = []
    for point in [*points, (math.nan, math.nan)]:
        if np.isfinite(point).all():
            run.append(point)
            continue
        if len(run) > 1 and np.ptp(run, axis=0).any():
            _smooth(picture, run, width, fill, lambda draw, p, w: draw.line(p, fill=255, width=round(w), joint="curve"))
        elif run:
            _draw_dot(picture, run[0], width, fill)
        run = []


def _smooth(picture, points, thickness, fill, stroke):
    """Draws at four times the size and scales down, because Pillow does not antialias lines and circles."""
    points = np.asarray(points, np.float64)
    low = np.maximum(np.floor(points.min(axis=0) - thickness - 1), 0).astype(int)
    high = np.minimum(np.ceil(points.max(axis=0) + thickness + 1), picture.size).astype(int)
    if (low >= high).any():
        return
    cover = Image.new("L", tuple(((high - low) * 4).tolist()))
    stroke(ImageDraw.Draw(cover), [tuple(p) for p in ((points - low) * 4 - 0.5).tolist()], thickness * 4)
    picture.paste(fill, (*low.tolist(), *high.tolist()), cover.reduce(4))


def _draw_tags(picture, boxes, texts, fills):
    """Draws name tags. The last box has the highest score, so its tag is placed first and drawn last."""
    width, height = picture.size
    font = _font(min(max(13, round(max(width, height) / 48)), max(6, height // 2)))
    pad, tall = max(1, round(font.size / 5)), _text_height(font)
    draw = ImageDraw.Draw(picture)
    texts = [_shorten(text, font, width - 2 * pad) for text in texts]
    places = []
    for box, text in zip(reversed(boxes), reversed(texts), strict=True):
        size = (tall, math.ceil(font.getlength(text)) + 2 * pad)
        places.append(_tag_place(_visible(box, picture.size), size, (height, width), places))
    for (top, left, bottom, right), text, fill in zip(reversed(places), texts, fills, strict=True):
        draw.rectangle((left, top, right - 1, bottom - 1), fill=fill)
        draw.text((left + pad, (top + bottom) / 2), text, fill=_contrast(fill), font=font, anchor="lm")


def _shorten(text, font, room) -> str:
    """Shortens a string to `room` pixels, with three dots at the end, if it does not fit."""
    if font.getlength(text) <= room:
        return text
    longest = bisect.bisect(range(1, len(text) + 1), room, key=lambda n: font.getlength(f"{text[:n]}..."))
    return f"{text[:longest].rstrip()}..."


def _tag_place(box: Rectangle, size: tuple[int, int], limits: tuple[int, int], taken: list[Rectangle]) -> Rectangle:
    """Chooses the place of a tag (above or below the box, or inside its top or bottom) that covers other tags least."""
    tall, wide = size
    top, left, bottom, right = box
    candidates = []
    for y in (top - tall, bottom, top, bottom - tall):
        for x in (left, right - wide):
            y_in, x_in = max(min(y, limits[0] - tall), 0), max(min(x, limits[1] - wide), 0)
            candidates.append((y_in, x_in, y_in + tall, x_in + wide))
    return min(candidates, key=lambda place: sum(_common_area(place, other) for other in taken))


def _common_area(a: Rectangle, b: Rectangle) -> int:
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def _contrast(fill: Colour) -> Colour:
    """Returns black or white, whichever has more contrast to `fill` by WCAG's relative luminance."""
    linear = [(v / 255 / 12.92) if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in fill]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


def _ticks(values, count) -> tuple[list[float], list[str]]:
    """Chooses round numbers that enclose the values, in about `count` steps of 1, 2 or 5 times a power of ten."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        low, high = (low, low + 1) if low == 0 else (low - abs(low) / 2, high + abs(high) / 2)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [i * step for i in range(first, last + 1)]
    largest, decimals = max(abs(ticks[0]), abs(ticks[-1])), max(0, -math.floor(math.log10(step) + 1e-9))
    if step > 1e-4 and largest < 1e7:
        return ticks, [f"{tick:.{decimals}f}" for tick in ticks]
    return ticks, [f"{tick:.3g}" for tick in ticks]


def _draw_legend(picture, names, font, room, points, place):
    """Draws the legend in the corner of `room` (left, top, right, bottom) that covers the fewest points."""
    row, sample = _text_height(font), 2 * font.size
    wide = round(max(font.getlength(name) for name in names)) + sample + 3 * row // 2
    tall = row * len(names) + row // 2
    left, top, right, bottom = room
    corners = [(x, y) for y in (top, bottom - tall) for x in (right - wide, left)]
    drawn = np.array([place(x, y) for x, y in points])

    def covered(corner):
        return np.count_nonzero(((drawn >= corner) & (drawn <= (corner[0] + wide, corner[1] + tall))).all(axis=1))

    x, y = min(corners, key=covered)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((x, y, x + wide, y + tall), fill=PAPER, outline=PALE)
    for i, name in enumerate(names):
        middle = y + row // 4 + row * (i + 0.5)
        _draw_line(picture, [(x + row // 2, middle), (x + row // 2 + sample, middle)], colour(i), 3)
        draw.text((x + row + sample, middle), name, fill=INK, font=font, anchor="lm")
