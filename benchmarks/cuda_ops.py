"""Compares values, gradients and times of the ops with torchvision on an NVIDIA GPU, without TensorFlow.

    make -C custom_ops all emulation
    python benchmarks/cuda_ops.py [--check] [--only roi_align] [--json benchmarks/results/cuda_ops_DEVICE.json]

Needs PyTorch and torchvision for CUDA, and custom_ops built with NVRTC. First, the script compares each op with
torchvision in float32. Pooling and gradients may differ by 1e-4 of the largest value, because nvcc fuses torchvision's
products and sums; other values may differ by 1e-5, and indices must be equal. In deterministic mode, each op runs twice
and must repeat all bits. Then CUDA events time both in turns, and the best of several rounds counts. The bandwidth
column is a fraction of the bandwidth of a large copy in the same run. It assumes that an op reads each input once and
writes each output once.
`--check` only compares, for example under compute-sanitizer; `--emulated` only compares, without a GPU and on small
sizes.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "custom_ops"))

import without_tensorflow

MAP, STRIDE = (200, 336, 256), 4
ROI_ALIGN = [(1000, 7, 2, "float32"), (1000, 7, 0, "float32"), (100, 14, 2, "float32"), (1000, 7, 2, "float16")]
PYRAMID = [(1, 1000, 7, "float32"), (8, 512, 7, "float32"), (8, 128, 14, "float32"), (8, 512, 7, "float16")]
NMS = [1000, 5000, 20000]  # boxes
CLASS_NMS = [(1000, 80), (5000, 80), (20000, 80)]  # boxes, classes
DEFORM_CONV = [(100, 168, 128), (50, 84, 256), (25, 42, 512)]  # height, width, channels
SMALL_MAP = (20, 34, 24)
ROUNDS, SECONDS = 5, 0.1  # number of rounds, and duration of each


@dataclasses.dataclass
class Line:
    """Describes one line of the table.

    Args:
        name: Name of the op and the case.
        ours: Call of kerasdet's op, for timing.
        theirs: Call of torchvision's op, for timing.
        results: Returns kerasdet's results in torchvision's layout.
        expected: Returns torchvision's results in float32.
        bytes: Minimum number of bytes to read and write.
        tolerance: Largest allowed difference as a fraction of the largest value; None requires equal values.
    """

    name: str
    ours: Callable
    theirs: Callable
    results: Callable
    expected: Callable
    bytes: int
    tolerance: float | None


class Device:
    """Runs the ops on PyTorch tensors.

    Args:
        torch: The torch module.
        emulated: Whether the GPU is emulated and uses host memory.
    """

    def __init__(self, torch, emulated):
        self.torch, self.name = torch, "cpu" if emulated else "cuda"
        self.scratch, self.next_scratch = [], 0
        opened = without_tensorflow.open_emulated() if emulated else without_tensorflow.open_shipped(self._scratch)
        self.library = opened

    def _scratch(self, size):
        """Returns scratch memory, which consecutive calls share."""
        place, self.next_scratch = self.next_scratch, self.next_scratch + 1
        if place == len(self.scratch):
            self.scratch.append(self.empty([1], "uint8"))  # not empty, because a null address means failure
        if self.scratch[place].numel() < size:
            self.scratch[place] = self.empty([size], "uint8")
        return self.scratch[place].data_ptr()

    def empty(self, shape, dtype="float32"):
        return self.torch.empty(tuple(shape), dtype=getattr(self.torch, dtype), device=self.name)

    def tensor(self, values, dtype=None):
        tensor = self.torch.as_tensor(values).to(self.name)
        return tensor if dtype is None else tensor.to(getattr(self.torch, dtype))

    def random(self, *shape, dtype="float32"):
        return self.tensor(self.torch.randn(*shape), dtype)

    def op(self, name, inputs, outputs, dtype="float32", **attributes):
        """Returns a function that runs an op and returns its outputs, in the same memory each time."""
        stream = 0 if self.name == "cpu" else self.torch.cuda.current_stream().cuda_stream
        call = self.library.op(name, dtype=dtype, **attributes).prepare(inputs, outputs, stream)

        def run():
            self.next_scratch = 0
            call()
            return outputs

        return run


def size_of(*tensors):
    """Returns the size in bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def random_boxes(count, height, width, low, high, seed=0):
    """Makes boxes (count, 4) yxyx with sides of `low` to `high` pixels, clipped to the image."""
    import numpy as np

    rng = np.random.default_rng(seed)
    centre, size = rng.uniform(0, [height, width], (count, 2)), rng.uniform(low, high, (count, 2))
    boxes = np.concatenate([centre - size / 2, centre + size / 2], 1)
    return np.clip(boxes, 0, [height, width, height, width]).astype(np.float32)


def channels_last(tensor):
    """Transposes (B, C, H, W) to (B, H, W, C)."""
    return tensor.permute(0, 2, 3, 1).contiguous()


def channels_first(tensor):
    """Transposes (..., H, W, C) to (..., C, H, W)."""
    return tensor.movedim(-1, -3)


def roi_align_lines(device, small):
    """Yields the comparisons of ROIAlign on one map."""
    from torchvision import ops

    height, width, channels = SMALL_MAP if small else MAP
    for count, size, ratio, dtype in ROI_ALIGN:
        count = count // 50 if small else count
        image = device.random(1, channels, height, width, dtype=dtype).requires_grad_()
        boxes = device.tensor(random_boxes(count, height * STRIDE, width * STRIDE, 16, 448))[None]
        options = one_level(1 / STRIDE) | options_of(size, ratio, aligned=True)
        name = f"roi_align {count} {size}x{size} sampling {ratio} {dtype}"

        def pool(images, boxes=boxes, size=size, ratio=ratio):
            return ops.roi_align(images[0], xyxy(boxes, images[0].dtype), size, 1 / STRIDE, ratio, True)

        yield from pooling_lines(device, name, pool, [image], boxes, options)


def pyramid_lines(device, small):
    """Yields the comparisons of ROIAlign on a feature pyramid, each box on its level."""
    from torchvision import ops

    torch, (height, width, channels) = device.torch, SMALL_MAP if small else MAP
    for batch, count, bins, dtype in PYRAMID:
        batch, count = (min(batch, 2), count // 50) if small else (batch, count)
        sizes = [(-(-height // 2**level), -(-width // 2**level)) for level in range(4)]
        images = [device.random(batch, channels, *size, dtype=dtype).requires_grad_() for size in sizes]
        shape = (height * STRIDE, width * STRIDE)
        boxes = torch.stack([device.tensor(random_boxes(count, *shape, 16, 700, seed)) for seed in range(batch)])
        options = options_of(bins, 2, aligned=False) | {"spatial_scales": [2.0**-level for level in range(2, 6)]}
        options |= {"lowest_level": 2, "canonical_size": 224.0, "canonical_level": 4.0, "level_epsilon": 1e-6}
        pooler = ops.MultiScaleRoIAlign([str(level) for level in range(4)], bins, 2)

        def pool(images, boxes=boxes, pooler=pooler, shape=shape):
            named = {str(level): image for level, image in enumerate(images)}
            return pooler(named, xyxy(boxes, images[0].dtype), [shape] * len(boxes))

        name = f"pyramid roi_align {batch}x{count} {bins}x{bins} {dtype}"
        yield from pooling_lines(device, name, pool, images, boxes, options)


def xyxy(boxes, dtype):
    """Converts boxes (B, P, 4) yxyx to torchvision's list of xyxy boxes."""
    return list(boxes[..., [1, 0, 3, 2]].to(dtype))


def options_of(size, ratio, aligned):
    """Returns those attributes of ROIAlign that are the same for one feature map and for a pyramid."""
    return {"output_height": size, "output_width": size, "sampling_ratio": ratio, "aligned": aligned}


def one_level(scale):
    """Returns the attributes of ROIAlign for a single feature map."""
    levels = {"lowest_level": 0, "canonical_size": 1.0, "canonical_level": 0.0, "level_epsilon": 0.0}
    return {"spatial_scales": [scale], **levels}


def pooling_lines(device, name, pool, images, boxes, options):
    """Yields the comparisons of pooling and its gradient. The reference is float32: torchvision rounds coordinates."""
    torch, dtype = device.torch, str(images[0].dtype).removeprefix("torch.")
    exact = [image.detach().float().requires_grad_() for image in images]
    features = [channels_last(image.detach()) for image in images]
    size = (options["output_height"], options["output_width"])
    pooled = device.empty([*boxes.shape[:2], *size, features[0].shape[3]], dtype)
    ours = device.op("RoiAlign", [*features, boxes], [pooled], dtype, **options)
    yield Line(
        name,
        ours=ours,
        theirs=lambda: pool(images).detach(),
        results=lambda: [channels_first(ours()[0]).flatten(0, 1)],
        expected=lambda: [pool(exact).detach()],
        bytes=size_of(*features, boxes, pooled),
        tolerance=1e-4 if dtype == "float32" else 1e-3,
    )
    upstream = device.random(*pooled.shape, dtype=dtype)
    shapes = [torch.tensor(x.shape, dtype=torch.int32) for x in features]
    gradients = [torch.empty_like(x) for x in features]
    gradient = device.op("RoiAlignGrad", [*shapes, boxes, upstream], gradients, dtype, **options)

    def backward(images):
        result, given = pool(images), channels_first(upstream).flatten(0, 1).to(images[0].dtype).contiguous()
        return lambda: torch.autograd.grad(result, images, given, retain_graph=True)

    yield Line(
        f"{name} grad",
        ours=gradient,
        theirs=backward(images),
        results=lambda: [channels_first(x) for x in gradient()],
        expected=lambda: backward(exact)(),
        bytes=size_of(upstream, boxes, *gradients),
        tolerance=1e-4 if dtype == "float32" else 1e-3,
    )


def nms_lines(device, small):
    """Yields the comparisons of NMS over all boxes, and per class."""
    import numpy as np
    from torchvision import ops

    for count, classes in [*((count, None) for count in NMS), *CLASS_NMS]:
        count = count // 10 if small else count
        boxes = device.tensor(random_boxes(count, 1200, 1200, 8, 100))
        scores = device.tensor(np.random.default_rng(1).permutation(count).astype("f") / count)
        ids = device.tensor(np.random.default_rng(2).integers(0, classes or 1, count).astype("i"))
        corners = boxes[:, [1, 0, 3, 2]].contiguous()
        outputs = [device.empty([1, count], "int32"), device.empty([1], "int32")]
        given = ids[None] if classes else device.empty([1, 0], "int32")
        options = {"max_detections": count, "iou_threshold": 0.5, "score_threshold": -1.0, "by_class": bool(classes)}
        ours = device.op("Nms", [boxes[None], scores[None], given], outputs, **options)
        if classes:
            theirs = lambda b=corners, s=scores, i=ids: ops.batched_nms(b, s, i, 0.5)  # noqa: E731
        else:
            theirs = lambda b=corners, s=scores: ops.nms(b, s, 0.5)  # noqa: E731
        yield Line(
            f"class-aware nms {count} of {classes}" if classes else f"nms {count}",
            ours=ours,
            theirs=theirs,
            results=lambda o=ours: [o()[0][0, : int(o()[1])].long()],
            expected=lambda t=theirs: [t()],
            bytes=size_of(boxes, scores, *outputs),
            tolerance=None,
        )


def deform_conv_lines(device, small):
    """Yields the comparisons of deformable convolution; cuBLAS multiplies with the kernel on both sides."""
    from torchvision import ops

    torch = device.torch
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for height, width, channels in DEFORM_CONV:
        height, width, channels = (height // 8, width // 8, channels // 16) if small else (height, width, channels)
        shapes = [(channels, height, width), (18, height, width), (9, height, width)]
        image, offsets, mask = (device.random(1, *shape).requires_grad_() for shape in shapes)
        kernel = (device.random(channels, channels, 3, 3) / channels**0.5).requires_grad_()
        inputs = [channels_last(value.detach()) for value in (image, offsets, mask)]
        matrix = kernel.detach().permute(2, 3, 1, 0).reshape(9 * channels, channels).contiguous()
        columns = device.empty([1, height * width, 9 * channels])
        options = {"kernel_height": 3, "kernel_width": 3, "stride": 1, "padding": 1, "dilation": 1, "groups": 1}
        options |= {"deformable_groups": 1, "masked": True}
        sample = device.op("DeformColumns", inputs, [columns], **options)
        ours = lambda s=sample, m=matrix: [s()[0][0] @ m]  # noqa: E731
        result = ops.deform_conv2d(image, offsets, kernel, padding=1, mask=mask)
        theirs = lambda a=(image, offsets, kernel), m=mask: ops.deform_conv2d(*a, padding=1, mask=m).detach()  # noqa: E731
        name = f"deform_conv2d {height}x{width}x{channels}"
        moved = size_of(*inputs, matrix, result)
        yield Line(
            name,
            ours=ours,
            theirs=theirs,
            results=lambda o=ours, h=height: [channels_first(o()[0].unflatten(0, (h, -1)))[None]],
            expected=lambda t=theirs: [t()],
            bytes=moved,
            tolerance=1e-5,
        )

        upstream = device.random(*result.shape)
        rows = channels_last(upstream)[0].flatten(0, 1)
        to_columns, gradients = torch.empty_like(columns), [torch.empty_like(value) for value in [*inputs, columns]]
        gradient = device.op("DeformColumnsGrad", [*inputs, to_columns], gradients, **options)

        def backward(gradient=gradient, to_columns=to_columns, rows=rows, matrix=matrix):
            torch.matmul(rows, matrix.T, out=to_columns[0])
            *others, columns = gradient()
            return [*others, columns[0].T @ rows]

        def backward_in_order(backward=backward, channels=channels):
            *others, to_matrix = backward()
            to_kernel = to_matrix.reshape(3, 3, channels, channels).permute(3, 2, 0, 1)
            return [*map(channels_first, others), to_kernel]

        wanted = [image, offsets, mask, kernel]
        theirs = lambda r=result, w=wanted, u=upstream: torch.autograd.grad(r, w, u, retain_graph=True)  # noqa: E731
        yield Line(f"{name} grad", backward, theirs, backward_in_order, theirs, 2 * moved, 1e-4)


LINES = (roi_align_lines, pyramid_lines, nms_lines, deform_conv_lines)


def compare(line):
    """Returns the largest difference relative to the largest value.

    Raises:
        SystemExit: If the difference exceeds the line's tolerance.
    """
    worst = 0.0
    for one, other in zip(line.expected(), line.results(), strict=True):
        if line.tolerance is None:
            if one.shape != other.shape or not bool((one == other).all()):
                sys.exit(f"{line.name}: keeps other boxes than torchvision.")
            continue
        one, other = one.double(), other.double()
        worst = max(worst, float((one - other).abs().max() / one.abs().max().clamp(min=1e-30)))
    if not worst <= (line.tolerance or 0):
        sys.exit(f"{line.name}: differs from torchvision by {worst:.2g} of the largest value.")
    return worst


def check_repeatable(line, library):
    """Runs an op twice in deterministic mode.

    Raises:
        SystemExit: If a value differs in any bit, or differs from torchvision by more than the tolerance.
    """
    library.set_determinism(True)
    try:
        compare(line)
        first = [value.clone() for value in line.results()]
        if not all(bool((one == other).all()) for one, other in zip(first, line.results(), strict=True)):
            sys.exit(f"{line.name}: does not repeat in deterministic mode.")
    finally:
        library.set_determinism(False)


def milliseconds(torch, functions):
    """Returns the best time of each call, by CUDA events around many calls; the calls take turns."""
    best = [float("inf")] * len(functions)
    for round_number in range(ROUNDS + 1):
        for i, function in enumerate(functions):
            repeats = 3 if round_number == 0 else max(3, min(200, int(1000 * SECONDS / best[i])))
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            function()
            start.record()
            for _ in range(repeats):
                function()
            end.record()
            end.synchronize()
            best[i] = min(best[i], start.elapsed_time(end) / repeats)
    return best


def copy_bandwidth(torch):
    """Measures the bytes per second that a large copy reads and writes."""
    source = torch.empty(1 << 28, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    (best,) = milliseconds(torch, [lambda: target.copy_(source)])
    return 2 * size_of(source) / (best / 1000)


def main():
    """Compares, measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare values without measuring times")
    parser.add_argument("--emulated", action="store_true", help="compare on an emulated GPU, with small sizes")
    parser.add_argument("--only", default="", help="run only comparisons whose names begin with this")
    parser.add_argument("--json", help="write the numbers to this JSON file")
    options = parser.parse_args()
    try:
        import torch
        import torchvision
    except ImportError as error:
        sys.exit(f"cuda_ops.py compares with torchvision, which is not installed: {error}. Install PyTorch for CUDA.")
    if not options.emulated and not torch.cuda.is_available():
        sys.exit("cuda_ops.py needs an NVIDIA GPU, but PyTorch finds none. Use --emulated to compare without one.")
    torch.manual_seed(0)
    try:
        device = Device(torch, options.emulated)
        table = [row for lines in LINES for row in chosen(lines(device, options.emulated), device, options)]
    except (OSError, ValueError) as error:
        sys.exit(f"cuda_ops.py: {error}")
    if options.json and not (options.check or options.emulated):
        versions = {"torch": torch.__version__, "torchvision": torchvision.__version__, "cuda": torch.version.cuda}
        report = {"device": torch.cuda.get_device_name(), **versions, "lines": table}
        Path(options.json).parent.mkdir(parents=True, exist_ok=True)
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def chosen(lines, device, options):
    """Runs the requested comparisons and prints each result when it is done."""
    bandwidth, torch = None, device.torch
    for line in lines:
        if not line.name.startswith(options.only):
            continue
        row = {"name": line.name, "difference": compare(line)}
        check_repeatable(line, device.library)
        text = f"{line.name:<48} differs by {row['difference']:.1e}"
        if not (options.check or options.emulated):
            bandwidth = bandwidth or copy_bandwidth(torch)
            ours, theirs = milliseconds(torch, [line.ours, line.theirs])
            share = line.bytes / (ours / 1000) / bandwidth
            row |= {"ms": ours, "torchvision_ms": theirs, "ratio": theirs / ours, "bandwidth_share": share}
            text += f"{ours:10.4f} ms {theirs:10.4f} ms {theirs / ours:7.2f}x {share:6.1%} of the bandwidth"
        print(text, flush=True)
        yield row


if __name__ == "__main__":
    main()
