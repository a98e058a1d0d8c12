"""Instance masks: run lengths, crops of fixed size for training, mask targets of regions, pasting, RLE.

A crop (S, S) is what lies inside an object's box, stretched to a square: cell (i, j) holds the share of its area that
the object covers, 0..255. It is computed from run lengths exactly, without a bitmap, so its size and cost do not
depend on the image. What a crop loses is measured in ``tests/test_masks.py`` by pasting it back into its box: over the
objects of COCO images the mean IoU with the original mask is 0.9997 at S = 112 (0.9988 for boxes of more than 224
pixels, the worst of 1,129 objects 0.992) and 0.998 at S = 56; taking the pixel in the middle of each cell would give
0.996 and 0.987.
"""

import tensorflow as tf

CROP_SIZE = 112
CONVENTIONS = ("detectron2", "torchvision")
_FULL = 255.0
_FAR = 1e6  # pixels
# A target at the threshold, usual where boxes lie on the pixel grid, must not turn on rounding: 1 / 510 is the
# rounding of a crop.
_TARGET_THRESHOLD = 0.5 - 1 / 510


def crops_from_runs(
    runs: tf.Tensor, num_runs: tf.Tensor, boxes: tf.Tensor, image_size: tf.Tensor, size: int = CROP_SIZE
) -> tf.Tensor:
    """Cuts the masks of one image's objects out of their run lengths.

    Args:
        runs: (R,) int32, the run lengths of all objects one after the other, each those of the whole image.
        num_runs: (M,) int32, how many of them belong to each object.
        boxes: (M, 4) inside the image.
        image_size: (2,) height and width that the run lengths are for.
        size: S.

    Returns:
        (M, S, S) uint8, the covered share of each cell of a box times 255.
    """
    height, width = tf.unstack(tf.cast(image_size, tf.float64))
    boxes = tf.cast(boxes, tf.float64)
    steps = tf.linspace(tf.constant(0.0, tf.float64), 1.0, size + 1)
    low, extent = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    y_edges, x_edges = (tf.expand_dims(low[:, i], 1) + tf.expand_dims(extent[:, i], 1) * steps for i in (0, 1))

    # One row for each pixel column of each box.
    first = tf.floor(low[:, 1])
    count = tf.cast(tf.math.ceil(boxes[:, 3]) - first, tf.int32)
    owner = tf.repeat(tf.range(tf.shape(boxes)[0]), count)  # (N,)
    start = tf.cumsum(count, exclusive=True)
    column = tf.cast(tf.range(tf.shape(owner)[0]) - tf.gather(start, owner), tf.float64) + tf.gather(first, owner)
    origin = (tf.cast(owner, tf.float64) * width + column) * height
    covered = _covered_before(runs, num_runs, tf.expand_dims(origin, 1) + tf.gather(y_edges, owner))  # (N, S + 1)
    covered = covered[:, 1:] - covered[:, :-1]  # (N, S)

    # The same along x: between whole columns the covered area grows linearly.
    before = tf.cumsum(covered, exclusive=True)
    edge = x_edges + tf.expand_dims(tf.cast(start, tf.float64) - first, 1)  # (M, S + 1)
    row = tf.clip_by_value(tf.cast(edge, tf.int32), 0, tf.maximum(tf.shape(owner)[0] - 1, 0))
    part = tf.expand_dims(edge - tf.cast(row, tf.float64), -1)
    area = tf.gather(before, row) + part * tf.gather(covered, row)  # (M, S + 1, S)
    area = area[:, 1:] - area[:, :-1]  # (M, S, S) as (x, y)
    cell = tf.reshape(extent[:, 0] * extent[:, 1] / size**2, [-1, 1, 1])
    share = tf.clip_by_value(tf.math.divide_no_nan(tf.transpose(area, [0, 2, 1]), cell), 0.0, 1.0)
    return tf.ensure_shape(tf.cast(tf.round(share * _FULL), tf.uint8), (None, size, size))


def _covered_before(runs, num_runs, positions):
    """How many covered pixels come before `positions` (N, S) float64, which may lie within a pixel."""
    first = tf.repeat(tf.cumsum(num_runs, exclusive=True), num_runs)
    inside = tf.cast((tf.range(tf.shape(runs)[0]) - first) % 2, tf.float64)  # (R,)
    runs = tf.cast(runs, tf.float64)
    ends, covered = tf.cumsum(runs), tf.cumsum(runs * inside)
    run = tf.searchsorted(ends, tf.reshape(positions, [-1]), side="right")
    run = tf.reshape(tf.minimum(run, tf.shape(runs)[0] - 1), tf.shape(positions))
    return tf.gather(covered, run) - tf.gather(inside, run) * (tf.gather(ends, run) - positions)


def crop_masks_for_rois(
    masks: tf.Tensor,
    boxes: tf.Tensor,
    rois: tf.Tensor,
    matched_gt: tf.Tensor,
    size: int = 28,
    convention: str = "detectron2",
    image_size: tf.Tensor | None = None,
) -> tf.Tensor:
    """Mask targets: each region's view of the mask of its object.

    Both sources apply ROIAlign with adaptive sampling to full-size bitmaps, torchvision half a pixel to the bottom
    right. A bilinear sample of a bitmap is the mean over a square of one pixel, which is taken of the crop here.

    Args:
        masks: (B, M, S, S) uint8, crops of the boxes.
        boxes: (B, M, 4).
        rois: (B, P, 4).
        matched_gt: (B, P) int32, the object of each region; where it is negative the target is 0.
        size: Height and width of the targets.
        convention: "detectron2" makes targets of 0 and 1, "torchvision" keeps fractions.
        image_size: (B, 2), beyond which the sources repeat the outermost pixels; None where that does not matter.

    Returns:
        (B, P, size, size) float32 in 0..1.

    Raises:
        ValueError: For an unknown convention.
    """
    check_convention(convention)
    index = tf.maximum(matched_gt, 0)
    boxes, rois = tf.cast(boxes, tf.float32), tf.cast(rois, tf.float32)
    boxes = tf.gather(boxes, index, batch_dims=1)  # (B, P, 4)
    crops = tf.cast(tf.gather(masks, index, batch_dims=1), tf.float32) / _FULL  # (B, P, S, S)
    limits = tf.fill([tf.shape(rois)[0], 2], _FAR) if image_size is None else tf.cast(image_size, tf.float32)
    y, x = (_sampling_weights(rois, boxes, limits[:, i : i + 1], i, size, crops.shape[-1], convention) for i in (0, 1))
    targets = tf.matmul(tf.matmul(y, crops), x, transpose_b=True)  # (B, P, size, size)
    if convention == "detectron2":
        targets = tf.cast(targets >= _TARGET_THRESHOLD, tf.float32)
    return tf.where(matched_gt[..., tf.newaxis, tf.newaxis] >= 0, targets, 0.0)


def _sampling_weights(rois, boxes, limit, axis, size, cells, convention):
    """What each bin of a region takes from each cell of a crop along one axis: (B, P, size, cells)."""
    start, end = rois[..., axis], rois[..., axis + 2]
    length = end - start
    if convention == "torchvision":
        start, length = start + 0.5, tf.maximum(length, 1.0)
    samples = tf.maximum(tf.math.ceil(length / size), 1.0)  # a bin
    step = length / (size * samples)
    bins = tf.range(size, dtype=tf.float32) * tf.expand_dims(length / size, -1)
    first = tf.expand_dims(start + step / 2 - 0.5, -1) + bins  # (B, P, size), where the first sample's pixel begins
    low, high = boxes[..., axis], boxes[..., axis + 2]
    inner = tf.expand_dims(low, -1) + tf.expand_dims(high - low, -1) * tf.linspace(0.0, 1.0, cells + 1)[1:-1]
    low, high = tf.where(low <= 0, -_FAR, low), tf.where(high >= limit, _FAR, high)  # the border's pixels go on
    edges = tf.concat([tf.expand_dims(low, -1), inner, tf.expand_dims(high, -1)], -1)  # (B, P, cells + 1)
    share = _mean_share(
        tf.expand_dims(edges, -2) - tf.expand_dims(first, -1),  # (B, P, size, cells + 1)
        samples[..., tf.newaxis, tf.newaxis],
        tf.maximum(step, 1e-3)[..., tf.newaxis, tf.newaxis],
    )
    return share[..., 1:] - share[..., :-1]


def _mean_share(x, samples, step):
    """The mean of ``clip(x - k * step, 0, 1)`` over k = 0..samples - 1."""
    full = tf.clip_by_value(tf.floor((x - 1) / step) + 1, 0.0, samples)
    partial = tf.clip_by_value(tf.math.ceil(x / step), 0.0, samples) - full
    return (full + partial * (x - full * step) - step * partial * (partial - 1) / 2) / samples


def paste_masks(
    mask_probs: tf.Tensor,
    boxes: tf.Tensor,
    height: int | tf.Tensor,
    width: int | tf.Tensor,
    convention: str = "detectron2",
    threshold: float = 0.5,
    whole_image: bool = False,
) -> tf.Tensor:
    """Puts predicted masks into their boxes in an image.

    "detectron2" samples a mask bilinearly at the pixels' centres, zero around it; a pixel belongs to the object from
    the threshold on. "torchvision" adds a border of zeros to mask and box, truncates the box to whole pixels and
    resizes the mask to it; a pixel belongs to the object above the threshold. The mask of a box that is not finite is
    empty.

    Args:
        mask_probs: (D, S, S) in 0..1.
        boxes: (D, 4) in pixels of the image.
        height: Of the image.
        width: Likewise.
        convention: "detectron2" or "torchvision".
        threshold: Above 0.
        whole_image: Compute every pixel and not only those near the box: slower, in the static shapes that XLA needs.

    Returns:
        (D, height, width) bool.

    Raises:
        ValueError: For an unknown convention.
    """
    check_convention(convention)
    size = tf.stack([tf.cast(height, tf.int32), tf.cast(width, tf.int32)])
    probs, boxes = tf.cast(mask_probs, tf.float32), tf.cast(boxes, tf.float32)
    boxes = tf.where(tf.reduce_all(tf.math.is_finite(boxes), 1, keepdims=True), boxes, -_FAR)
    return _paste(probs, boxes, size, tf.constant(threshold, tf.float32), convention, whole_image)


@tf.function(reduce_retracing=True)
def _paste(probs, boxes, image_size, threshold, convention, whole_image):
    cells = tf.cast(tf.shape(probs)[1], tf.float32)
    sample = _detectron2_samples if convention == "detectron2" else _torchvision_samples

    def paste(inputs):
        mask, box = inputs
        weights, paddings = [], []
        for axis in (0, 1):
            low, high, limit = box[axis], box[axis + 2], tf.cast(image_size[axis], tf.float32)
            margin = (high - low) / cells + 2  # further outside all is zero
            start = tf.clip_by_value(tf.floor(low - margin), 0.0, limit)
            stop = tf.clip_by_value(tf.math.ceil(high + margin), start, limit)
            pixels = tf.range(0.0, limit) if whole_image else tf.range(start, stop)
            places = tf.where((pixels >= start) & (pixels < stop), sample(pixels, low, high, cells), -1.0)
            weights.append(tf.nn.relu(1 - tf.abs(tf.expand_dims(places, 1) - tf.range(cells))))  # (h, S)
            padding = [tf.cast(start, tf.int32), image_size[axis] - tf.cast(stop, tf.int32)]
            paddings.append([0, 0] if whole_image else padding)
        values = tf.matmul(tf.matmul(weights[0], mask), weights[1], transpose_b=True)
        inside = values >= threshold if convention == "detectron2" else values > threshold
        return tf.pad(inside, paddings)

    signature = tf.TensorSpec([None, None], tf.bool)
    # map_fn cannot stack nothing, so there is one more than was asked for.
    inputs = tf.pad(probs, [[0, 1], [0, 0], [0, 0]]), tf.pad(boxes, [[0, 1], [0, 0]])
    return tf.map_fn(paste, inputs, parallel_iterations=4, fn_output_signature=signature)[:-1]


def _detectron2_samples(pixels, low, high, cells):
    """Where in a mask the middle of each pixel falls, in cells."""
    return (pixels + 0.5 - low) / (high - low) * cells - 0.5


def _torchvision_samples(pixels, low, high, cells):
    centre, half = (low + high) / 2, (high - low) / 2 * ((cells + 2) / cells)
    low, high = tf.unstack(tf.cast(tf.cast(tf.stack([centre - half, centre + half]), tf.int32), tf.float32))
    length = tf.maximum(high - low + 1, 1.0)
    places = (pixels - low + 0.5) * ((cells + 2) / length) - 0.5
    places = tf.clip_by_value(places, 0.0, cells + 1) - 1  # without the border
    return tf.where((pixels >= low) & (pixels < low + length), places, -1.0)


def check_convention(convention: str) -> None:
    """Raises ValueError for a convention of pasting that there is not."""
    if convention not in CONVENTIONS:
        raise ValueError(f"convention is one of {CONVENTIONS}, not {convention!r}.")
