"""Measures the detection ops and their peers on the CPU in milliseconds, forward and with gradients.

    python benchmarks/ops.py [--peer-python PYTHON] [--threads 1 2] [--only roi_align] [--json FILE]

Each op is measured compiled, in stock TensorFlow ops ("pure"), and in the closest functions of TensorFlow and
pycocotools. `--peer-python` takes a Python interpreter with torchvision and also measures torchvision. Each measurement
has its own process, and the frameworks take turns in rounds, so that noise affects all of them. The best time counts.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time

MAP, STRIDE = (200, 336, 256), 4
ROI_ALIGN = [(1000, 7, 2), (1000, 7, 0), (100, 14, 2), (100, 14, 0)]  # boxes, output size, sampling ratio
ROI_POOL = [(512, 7)]  # boxes, output size
NMS = [1000, 5000, 20000]  # boxes
CLASS_NMS = [(1000, 80), (20000, 80)]  # boxes, classes per box
DEFORM_CONV = [(100, 168, 128), (50, 84, 256), (25, 42, 512)]  # height, width, channels
MASKS = (100, 28, 800, 1344)  # detections, cells, height and width of the image
SECONDS, MOST_REPEATS = 0.5, 1000  # limits of each measurement


def random_boxes(count, height, width, low, high):
    """Makes boxes (count, 4) yxyx with sides of `low` to `high` pixels, clipped to the image."""
    import numpy as np

    rng = np.random.default_rng(0)
    centre, size = rng.uniform(0, [height, width], (count, 2)), rng.uniform(low, high, (count, 2))
    boxes = np.concatenate([centre - size / 2, centre + size / 2], 1)
    return np.clip(boxes, 0, [height, width, height, width]).astype(np.float32)


def roi_boxes(count):
    """Makes boxes of 16 to 448 pixels in the image of the feature map."""
    return random_boxes(count, MAP[0] * STRIDE, MAP[1] * STRIDE, 16, 448)


def scored_boxes(count):
    """Makes boxes (count, 4) and scores (count,) without ties."""
    import numpy as np

    return random_boxes(count, 1200, 1200, 8, 100), np.random.default_rng(1).permutation(count).astype("f") / count


def class_scores(count, classes):
    """Makes scores (count, classes) like a detector's: few are high."""
    import numpy as np

    return np.random.default_rng(1).random((count, classes)).astype(np.float32) ** 8


def name_of(op, *what):
    """Returns the name of a measurement in the table."""
    return " ".join([op, *map(str, what)])


class Stopwatch:
    """Collects the best time of each line, forward and, if there is a gradient function, with the gradient."""

    def __init__(self, only):
        self.only, self.milliseconds = only, {}

    def time(self, name, *functions):
        if self.only and not name.startswith(self.only):
            return
        for suffix, function in zip(("", " + grad"), functions, strict=False):
            function()
            times, start = [], time.perf_counter()
            while not times or (time.perf_counter() - start < SECONDS and len(times) < MOST_REPEATS):
                begin = time.perf_counter()
                function()
                times.append(1000 * (time.perf_counter() - begin))
            self.milliseconds[name + suffix] = min(times)


def in_graphs(function, arguments):
    """Returns two calls without arguments: the function, and the function with the gradient of its arguments."""
    import tensorflow as tf

    def gradient(*arguments):
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            result = function(*arguments)
        return result, tape.gradient(result, arguments)

    forward, backward = tf.function(function), tf.function(gradient)
    return lambda: forward(*arguments), lambda: backward(*arguments)


def measure_kerasdet(watch, implementation):
    """Measures all ops of `kerasdet.ops`."""
    import numpy as np
    import tensorflow as tf

    from kerasdet import ops

    features = tf.random.normal([1, *MAP])
    with ops.implementation(implementation):
        for count, size, ratio in ROI_ALIGN:
            options = {"output_size": size, "spatial_scale": 1 / STRIDE, "sampling_ratio": ratio}
            boxes = tf.constant(roi_boxes(count)[None])
            pool = lambda x, b=boxes, o=options: ops.roi_align(x, b, **o)  # noqa: E731
            watch.time(name_of("roi_align", count, f"{size}x{size}", "sampling", ratio), *in_graphs(pool, [features]))
        for count, size in ROI_POOL if implementation == "tensorflow" else []:
            boxes = tf.constant(roi_boxes(count)[None])
            pool = lambda x, b=boxes, s=size: ops.roi_pool(x, b, output_size=s, spatial_scale=1 / STRIDE)  # noqa: E731
            watch.time(name_of("roi_pool", count, f"{size}x{size}"), *in_graphs(pool, [features]))
        for count in NMS:
            arguments = [tf.constant(value[None]) for value in scored_boxes(count)]
            keep = lambda b, s, n=count: ops.nms(b, s, iou_threshold=0.5, max_detections=n)  # noqa: E731
            watch.time(name_of("nms", count), in_graphs(keep, arguments)[0])
        for count, classes in CLASS_NMS:
            boxes, scores = scored_boxes(count)[0][None], class_scores(count, classes).reshape(1, -1)
            ids = np.tile(np.arange(classes, dtype=np.int32), count)[None]
            arguments = [tf.constant(value) for value in (np.repeat(boxes, classes, 1), scores, ids)]
            keep = lambda b, s, c: ops.nms(b, s, c, iou_threshold=0.5, max_detections=100)  # noqa: E731
            if implementation == "compiled" or count < 5000:
                watch.time(name_of("class-aware nms", count, "x", classes), in_graphs(keep, arguments)[0])
        for height, width, channels in DEFORM_CONV:
            shapes = [[1, height, width, channels], [3, 3, channels, channels], [1, height, width, 18]]
            arguments = [tf.random.normal(shape) for shape in [*shapes, [1, height, width, 9]]]
            convolve = lambda *arguments: ops.deform_conv2d(*arguments, padding=1)  # noqa: E731
            watch.time(name_of("deform_conv2d", f"{height}x{width}x{channels}"), *in_graphs(convolve, arguments))
        probs, boxes, (height, width) = *random_masks(), MASKS[2:]
        probs, boxes = tf.constant(probs), tf.constant(boxes)
        watch.time("masks pasted", in_graphs(lambda p, b: ops.paste_masks(p, b, height, width), [probs, boxes])[0])
        watch.time("masks as RLE", lambda: ops.encode_masks(probs, boxes, height, width))


def random_masks():
    """Makes smooth mask probabilities (D, S, S), and boxes."""
    import numpy as np

    count, cells, height, width = MASKS
    noise = np.random.default_rng(2).normal(0, 3, (count, 7, 7))
    smooth = np.kron(noise, np.ones((cells // 7, cells // 7)))
    return (1 / (1 + np.exp(-smooth))).astype(np.float32), random_boxes(count, height, width, 16, 600)


def measure_tensorflow(watch):
    """Measures the closest functions of TensorFlow, and pycocotools for masks."""
    import numpy as np
    import tensorflow as tf
    from pycocotools import mask as rle

    from kerasdet.geometry import masks

    features, image = tf.random.normal([1, *MAP]), np.tile(np.multiply(MAP[:2], STRIDE), 2)
    for count, size, ratio in ROI_ALIGN:
        if ratio == 0:
            continue
        boxes, index = tf.constant(roi_boxes(count) / image, tf.float32), tf.zeros(count, tf.int32)

        def pool(x, boxes=boxes, index=index, size=size):
            crops = tf.image.crop_and_resize(x, boxes, index, [2 * size, 2 * size])
            return tf.nn.avg_pool2d(crops, 2, 2, "VALID")

        watch.time(name_of("roi_align", count, f"{size}x{size}", "sampling", ratio), *in_graphs(pool, [features]))
    for count in NMS:
        keep = lambda b, s, n=count: tf.image.non_max_suppression(b, s, n, 0.5)  # noqa: E731
        arguments = [tf.constant(value) for value in scored_boxes(count)]
        watch.time(name_of("nms", count), in_graphs(keep, arguments)[0])
    for count, classes in CLASS_NMS:
        arguments = [
            tf.constant(scored_boxes(count)[0][None, :, None]),
            tf.constant(class_scores(count, classes)[None]),
        ]
        keep = lambda b, s: tf.image.combined_non_max_suppression(b, s, 100, 100, 0.5, clip_boxes=False)  # noqa: E731
        watch.time(name_of("class-aware nms", count, "x", classes), in_graphs(keep, arguments)[0])
    probs, boxes = random_masks()
    paste = lambda: masks.paste_masks(probs, boxes, *MASKS[2:]).numpy()  # noqa: E731

    def paste_and_encode():
        return rle.encode(np.asfortranarray(paste().astype(np.uint8).transpose(1, 2, 0)))

    watch.time("masks as RLE", paste_and_encode)


def measure_torchvision(watch):
    """Measures the same ops of torchvision in eager mode."""
    import torch
    from torchvision import ops

    torch.set_num_threads(int(os.environ["KERASDET_THREADS"]))

    def both(function, arguments):
        def gradient():
            leaves = [argument.clone().requires_grad_() for argument in arguments]
            function(*leaves).sum().backward()

        return lambda: function(*arguments), gradient

    xyxy, features = [1, 0, 3, 2], torch.randn(1, MAP[2], *MAP[:2])
    for count, size, ratio in ROI_ALIGN:
        boxes = [torch.tensor(roi_boxes(count)[:, xyxy])]
        pool = lambda x, b=boxes, s=size, r=ratio: ops.roi_align(x, b, s, 1 / STRIDE, r, True)  # noqa: E731
        watch.time(name_of("roi_align", count, f"{size}x{size}", "sampling", ratio), *both(pool, [features]))
    for count, size in ROI_POOL:
        boxes = [torch.tensor(roi_boxes(count)[:, xyxy])]
        pool = lambda x, b=boxes, s=size: ops.roi_pool(x, b, s, 1 / STRIDE)  # noqa: E731
        watch.time(name_of("roi_pool", count, f"{size}x{size}"), *both(pool, [features]))
    for count in NMS:
        boxes, scores = (torch.tensor(value) for value in scored_boxes(count))
        boxes = boxes[:, xyxy].contiguous()
        watch.time(name_of("nms", count), lambda b=boxes, s=scores: ops.nms(b, s, 0.5))
    for height, width, channels in DEFORM_CONV:
        shapes = [[1, channels, height, width], [channels, channels, 3, 3], [1, 18, height, width]]
        arguments = [torch.randn(shape) for shape in [*shapes, [1, 9, height, width]]]
        convolve = lambda x, k, o, m: ops.deform_conv2d(x, o, k, padding=1, mask=m)  # noqa: E731
        watch.time(name_of("deform_conv2d", f"{height}x{width}x{channels}"), *both(convolve, arguments))


MEASURE = {
    "compiled": lambda watch: measure_kerasdet(watch, "compiled"),
    "pure": lambda watch: measure_kerasdet(watch, "tensorflow"),
    "tensorflow": measure_tensorflow,
    "torchvision": measure_torchvision,
}


def measured(framework, python, threads, only):
    """Runs one round in its own process and returns the milliseconds of each measurement by its name."""
    environment = {**os.environ, "KERASDET_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": "-1"}
    environment |= {"TF_NUM_INTRAOP_THREADS": str(threads), "TF_NUM_INTEROP_THREADS": "1"}
    command = [python, __file__, "--measure", framework, "--only", only]
    run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout.strip().splitlines()[-1])


def table(times):
    """Formats the milliseconds of each framework, and the speedup of the compiled ops."""
    frameworks = [name for name in MEASURE if name in times]
    lines = [f"{'best ms':<36}" + "".join(f"{name:>21}" for name in frameworks)]
    for line in {line: None for framework in frameworks for line in times[framework]}:
        cells, ours = [], times["compiled"].get(line)
        for framework in frameworks:
            value = times[framework].get(line)
            ratio = f" ({value / ours:6.2f}x)" if value and ours and framework != "compiled" else " " * 10
            cells.append("-".rjust(11) + " " * 10 if value is None else f"{value:11.2f}{ratio}")
        lines.append(f"{line:<36}" + "".join(cells))
    return "\n".join(lines)


def main():
    """Runs the rounds and prints a table for each number of threads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="Python interpreter with torchvision; also measures torchvision")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", default="", help="run only measurements whose names begin with this")
    parser.add_argument("--json", help="write the numbers to this JSON file")
    parser.add_argument("--measure", choices=MEASURE, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        watch = Stopwatch(options.only)
        with contextlib.redirect_stdout(sys.stderr):
            MEASURE[options.measure](watch)
        print(json.dumps(watch.milliseconds))
        return
    pythons = dict.fromkeys(("compiled", "pure", "tensorflow"), sys.executable)
    if options.peer_python:
        pythons["torchvision"] = options.peer_python
    results = {}
    for threads in options.threads:
        times = {framework: {} for framework in pythons}
        for _ in range(options.rounds):
            for framework, python in pythons.items():
                for line, value in measured(framework, python, threads, options.only).items():
                    times[framework][line] = min(value, times[framework].get(line, value))
        results[threads] = times
        print(f"\n{threads} thread{'s' * (threads > 1)}\n{table(times)}", flush=True)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
