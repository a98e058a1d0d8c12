"""Milliseconds of the detection ops on the CPU, forward and with gradients.

    python benchmarks/ops.py [--peer-python PYTHON]

Boxes are pooled from one 200x336x256 map. Each round is a process of its own; with a Python that has torchvision
(`--peer-python`) the two frameworks take turns, so that a noisy machine is noisy for both.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

MAP, STRIDE, REPEATS = (200, 336, 256), 4, 3
ROI_ALIGN = [(1000, 7, 2), (1000, 7, 0), (100, 14, 2), (100, 14, 0)]  # boxes, output size, sampling ratio
ROI_POOL = [(512, 7)]  # boxes, output size
DEFORM_CONV = [(100, 168, 128), (50, 84, 256), (25, 42, 512)]  # height, width, channels


def random_boxes(count):
    """(count, 4) yxyx of sides between 14 and 56 cells."""
    import numpy as np

    rng = np.random.default_rng(0)
    image = np.array(MAP[:2]) * STRIDE
    centre, size = rng.uniform(0, image, (count, 2)), rng.uniform(14, 56, (count, 2)) * STRIDE
    boxes = np.concatenate([centre - size / 2, centre + size / 2], 1)
    return np.clip(boxes, 0, np.tile(image, 2)).astype(np.float32)


def measure_kerasdet():
    """Name -> times, in graphs."""
    import tensorflow as tf

    from kerasdet import ops

    def both(name, function, arguments):
        def gradient(*arguments):
            with tf.GradientTape() as tape:
                tape.watch(arguments)
                result = function(*arguments)
            return tape.gradient(result, arguments)

        forward, backward = tf.function(function), tf.function(gradient)
        return {name: _times(lambda: forward(*arguments)), f"{name} + grad": _times(lambda: backward(*arguments))}

    times, features = {}, tf.random.normal([1, *MAP])
    for count, size, ratio in ROI_ALIGN:
        options = {"output_size": size, "spatial_scale": 1 / STRIDE, "sampling_ratio": ratio}
        boxes = random_boxes(count)[None]
        name = f"roi_align {count} {size}x{size} sampling {ratio}"
        times |= both(name, lambda x, b=boxes, o=options: ops.roi_align(x, b, **o), [features])
    for count, size in ROI_POOL:
        options, boxes = {"output_size": size, "spatial_scale": 1 / STRIDE}, random_boxes(count)[None]
        name = f"roi_pool {count} {size}x{size}"
        times |= both(name, lambda x, b=boxes, o=options: ops.roi_pool(x, b, **o), [features])
    for height, width, channels in DEFORM_CONV:
        shapes = [[1, height, width, channels], [3, 3, channels, channels], [1, height, width, 18]]
        arguments = [tf.random.normal(shape) for shape in [*shapes, [1, height, width, 9]]]
        name = f"deform_conv2d v2 {height}x{width}x{channels}"
        times |= both(name, lambda *arguments: ops.deform_conv2d(*arguments, padding=1), arguments)
    return times


def measure_torchvision():
    """The same in torchvision, eager."""
    import torch
    from torchvision import ops

    def both(name, function, arguments):
        def gradient():
            leaves = [argument.clone().requires_grad_() for argument in arguments]
            function(*leaves).sum().backward()

        return {name: _times(lambda: function(*arguments)), f"{name} + grad": _times(gradient)}

    times, features = {}, torch.randn(1, MAP[2], *MAP[:2])
    for count, size, ratio in ROI_ALIGN:
        boxes = [torch.tensor(random_boxes(count)[:, [1, 0, 3, 2]])]
        name = f"roi_align {count} {size}x{size} sampling {ratio}"
        function = lambda x, b=boxes, s=size, r=ratio: ops.roi_align(x, b, s, 1 / STRIDE, r, True)  # noqa: E731
        times |= both(name, function, [features])
    for count, size in ROI_POOL:
        boxes = [torch.tensor(random_boxes(count)[:, [1, 0, 3, 2]])]
        function = lambda x, b=boxes, s=size: ops.roi_pool(x, b, s, 1 / STRIDE)  # noqa: E731
        times |= both(f"roi_pool {count} {size}x{size}", function, [features])
    for height, width, channels in DEFORM_CONV:
        shapes = [[1, channels, height, width], [channels, channels, 3, 3], [1, 18, height, width]]
        arguments = [torch.randn(shape) for shape in [*shapes, [1, 9, height, width]]]
        function = lambda x, k, o, m: ops.deform_conv2d(x, o, k, padding=1, mask=m)  # noqa: E731
        times |= both(f"deform_conv2d v2 {height}x{width}x{channels}", function, arguments)
    return times


def _times(function):
    function()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        times.append(1000 * (time.perf_counter() - start))
    return times


def main():
    """Runs the rounds and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="a Python interpreter with torchvision")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--measure", choices=["kerasdet", "torchvision"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps({"kerasdet": measure_kerasdet, "torchvision": measure_torchvision}[options.measure]()))
        return
    pythons = {"kerasdet": sys.executable}
    if options.peer_python:
        pythons["torchvision"] = options.peer_python
    times = {framework: {} for framework in pythons}
    for _ in range(options.rounds):
        for framework, python in pythons.items():
            run = subprocess.run(
                [python, __file__, "--measure", framework], stdout=subprocess.PIPE, text=True, check=True
            )
            for name, values in json.loads(run.stdout.strip().splitlines()[-1]).items():
                times[framework].setdefault(name, []).extend(values)
    print(f"{'median ms':<44}" + "".join(f"{framework:>12}" for framework in pythons))
    for name in times["kerasdet"]:
        print(f"{name:<44}" + "".join(f"{statistics.median(t[name]):12.0f}" for t in times.values()))


if __name__ == "__main__":
    main()
