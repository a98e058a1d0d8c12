"""Measures time and peak memory of a training step of R50-FPN detectors, batch 2 at 512x512 on the CPU.

    python benchmarks/train_step.py [--peer-python PYTHON] [--models retinanet fcos mask_rcnn] [--rounds N] [--gpu]

A step is forward, backward and SGD with momentum, with frozen norms, stem and c2. Each measurement runs in a process of
its own. With a Python that has torchvision (`--peer-python`) the two frameworks take turns, so that noise affects both.
With `--gpu`, a step takes a batch of 8 at 1024x1024 on the first GPU; both frameworks convolve in TF32, and the memory
is that of the host.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

OBJECTS, STEPS = 8, 6
CPU, GPU = (2, 512), (8, 1024)  # batch and image size
MODELS = ("retinanet", "fcos", "mask_rcnn")


def measure_kerasdet(name: str, precision: str, batch_size: int, size: int) -> list[float]:
    """Times steps of kerasdet after a warm-up.

    Args:
        name: One of `MODELS`.
        precision: Keras' mixed-precision policy.
        batch_size: Number of images.
        size: Height and width of the images in pixels.

    Returns:
        Seconds of each step.
    """
    import keras
    import numpy as np
    import tensorflow as tf

    import kerasdet

    keras.mixed_precision.set_global_policy(precision)
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, size / 2, (batch_size, OBJECTS, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(20, size / 2, (batch_size, OBJECTS, 2))], -1)
    batch = {
        "image": rng.integers(0, 256, (batch_size, size, size, 3), np.uint8),
        "image_size": np.full((batch_size, 2), size, np.int32),
        "boxes": boxes.astype(np.float32),
        "class_ids": rng.integers(0, 80, (batch_size, OBJECTS)).astype(np.int32),
        "is_crowd": np.zeros((batch_size, OBJECTS), bool),
        "masks": np.full((batch_size, OBJECTS, 112, 112), 255, np.uint8),
    }
    classes = {"retinanet": kerasdet.RetinaNet, "fcos": kerasdet.FCOS, "mask_rcnn": kerasdet.MaskRCNN}
    features = ("c2", "c3", "c4", "c5") if name == "mask_rcnn" else ("c3", "c4", "c5")
    backbone = kerasdet.ResNet(50, norm="frozen_bn", freeze_at=2, out_features=features)
    model = classes[name](80, backbone=backbone)
    model.compile(optimizer=keras.optimizers.SGD(1e-4, momentum=0.9))
    model.optimizer.build(model.trainable_variables)
    step = tf.function(model.train_step)
    batch = {name: tf.constant(value) for name, value in batch.items()}
    return _times(lambda: step(batch)["loss"].numpy())


def measure_torchvision(name: str, batch_size: int, size: int, device: str) -> list[float]:
    """Times eager steps of torchvision, with the frozen layers and the number of proposals of kerasdet's model.

    Args:
        name: One of `MODELS`.
        batch_size: Number of images.
        size: Height and width of the images in pixels.
        device: "cpu" or "cuda".

    Returns:
        Seconds of each step.
    """
    import torch
    from torchvision.models import detection
    from torchvision.ops import FrozenBatchNorm2d

    torch.manual_seed(0)
    builders = {
        "retinanet": (detection.retinanet_resnet50_fpn, {}),
        "fcos": (detection.fcos_resnet50_fpn, {}),
        "mask_rcnn": (detection.maskrcnn_resnet50_fpn, {"rpn_post_nms_top_n_train": 1000}),
    }
    build, arguments = builders[name]
    model = build(
        weights=None,
        weights_backbone=None,
        num_classes=81,
        min_size=size,
        max_size=size,
        trainable_backbone_layers=3,
        norm_layer=FrozenBatchNorm2d,
        **arguments,
    ).train()
    model.to(device)
    torch.set_default_device(device)
    model.backbone.body.conv1.requires_grad_(False)
    model.backbone.body.layer1.requires_grad_(False)
    images = [torch.rand(3, size, size) for _ in range(batch_size)]
    corners = torch.rand(batch_size, OBJECTS, 2) * size / 2
    boxes = torch.cat([corners, corners + 20 + torch.rand(batch_size, OBJECTS, 2) * (size / 2 - 20)], -1)
    targets = [{"boxes": b, "labels": torch.randint(1, 81, (OBJECTS,))} for b in boxes]
    for target in targets if name == "mask_rcnn" else []:
        target["masks"] = torch.ones(OBJECTS, size, size, dtype=torch.uint8)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4, momentum=0.9)

    def step():
        optimizer.zero_grad()
        loss = sum(model(images, targets).values())
        loss.backward()
        optimizer.step()
        return loss.item()

    return _times(step)


def _times(step):
    step(), step()
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return times


def main() -> None:
    """Runs all measurements and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="a Python interpreter with torchvision")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gpu", action="store_true", help="measure larger batches on the first GPU")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    batch_size, size = GPU if options.gpu else CPU
    if options.measure:
        model, framework = options.measure
        device = "cuda" if options.gpu else "cpu"
        measure = {
            "kerasdet": lambda: measure_kerasdet(model, "float32", batch_size, size),
            "kerasdet bfloat16": lambda: measure_kerasdet(model, "mixed_bfloat16", batch_size, size),
            "torchvision": lambda: measure_torchvision(model, batch_size, size, device),
        }[framework]
        times = measure()
        print(json.dumps([times, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
        return
    pythons = {"kerasdet": sys.executable, "kerasdet bfloat16": sys.executable}
    if options.peer_python:
        pythons = {"torchvision": options.peer_python, **pythons}
    print(f"{'':<28} median s   min s   max s   peak MiB   relative", flush=True)
    for model in options.models:
        times, memory = {name: [] for name in pythons}, dict.fromkeys(pythons, 0.0)
        for _ in range(options.rounds):
            for name, python in pythons.items():
                command = [python, __file__, "--measure", model, name, *(["--gpu"] if options.gpu else [])]
                run = subprocess.run(command, capture_output=True, text=True, check=True)
                step_times, peak = json.loads(run.stdout.strip().splitlines()[-1])
                times[name] += step_times
                memory[name] = max(memory[name], peak)
        base = statistics.median(times.get("torchvision", times["kerasdet"]))
        for name, values in times.items():
            median = statistics.median(values)
            print(
                f"{model + ', ' + name:<28} {median:8.3f} {min(values):7.3f} {max(values):7.3f} {memory[name]:10.0f} "
                f"{median / base:10.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
