"""Makes tests/checkpoints/data/torchvision_mobile.npz with torchvision: python make_torchvision_data.py SHARED.

torchvision 0.28.0 with torch 2.13.0 made the file in the repository. SHARED is the folder with
``reference/reference_weights.py``, which makes the weights and images; the tests call the same functions.
"""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np

FILE = Path(__file__).parent / "data" / "torchvision_mobile.npz"
NAMES = (
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "ssdlite320_mobilenet_v3_large",
    "ssd300_vgg16",
)
# Factors that keep activations near unit scale and scores away from saturation. Without them, box deltas reach 70
# anchor sizes, and torchvision in float32 differs from itself in float64 by up to half a pixel.
FACTORS = {
    **{f"backbone.fpn.inner_blocks.{i}.0.weight": 0.01 for i in range(2)},
    "rpn.head.cls_logits.weight": 5.0,  # about half of the objectness is below the threshold
    "backbone.features.0.weight": 0.01,  # SSD300 is fed 0..255 minus the mean
    "backbone.scale_weight": 20,
}


def state(weights, layout):
    """Makes the tensors of a model: those of `weights`, the module of reference weights, times `FACTORS`."""
    made = weights.state_dict(layout)
    return {name: value * np.float32(FACTORS.get(name, 1)) for name, value in made.items()}


def images(weights):
    """Makes two images of different sizes."""
    return [weights.image(250, 333, 11), weights.image(300, 200, 12)]


def targets(weights):
    """Makes boxes (xyxy in the images) and class ids of both images."""
    return [weights.targets(250, 333, 9, 90, seed=0), weights.targets(300, 200, 4, 90, seed=1)]


def thin_map(x):
    """Takes every 16th channel, and every 4th row and column of a map (B, C, H, W)."""
    return np.ascontiguousarray(x[:, ::16, ::4, ::4])


def thin_rows(x):
    """Takes every 97th default box of head outputs (B, R, C)."""
    return np.ascontiguousarray(x[:, ::97])


def outputs(name, weights):
    """Runs a model of torchvision; returns its layout and outputs."""
    import torch
    from torchvision.models import detection

    model = getattr(detection, name)(weights=None, weights_backbone=None)
    layout = {key: list(value.shape) for key, value in model.state_dict().items()}
    model.load_state_dict({key: torch.as_tensor(value) for key, value in state(weights, layout).items()})
    model.eval()
    x = [torch.as_tensor(image.copy()).permute(2, 0, 1).float() / 255 for image in images(weights)]
    found = {}
    with torch.no_grad():
        for index, result in enumerate(model(x)):
            found |= {f"e2e_{index}_{key}": value.numpy() for key, value in result.items()}
        batch, _ = model.transform(x)
        features = model.backbone(batch.tensors)
        found |= {f"feature_{i}": thin_map(value.numpy()) for i, value in enumerate(features.values())}
        maps = list(features.values())
        if "ssd" in name:
            head = model.head(maps)
            found["logits"] = thin_rows(head["cls_logits"].numpy())
            found["deltas"] = thin_rows(head["bbox_regression"].numpy())
            found["anchors"] = model.anchor_generator(batch, maps)[0].numpy()[::97]
        else:
            proposals, _ = model.rpn(batch, features)
            found |= {f"proposals_{i}": value.numpy()[:200] for i, value in enumerate(proposals)}
            found["proposal_counts"] = np.array([len(value) for value in proposals])
            model.rpn.fg_bg_sampler.batch_size_per_image = 10**6  # the samplers take every candidate
            model.roi_heads.fg_bg_sampler.batch_size_per_image = 10**6
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        wanted = [
            {"boxes": torch.as_tensor(boxes), "labels": torch.as_tensor(classes).long() + 1}
            for boxes, classes in targets(weights)
        ]
        losses = model(x, wanted)
    found |= {f"loss_{key.removeprefix('loss_')}": value.numpy() for key, value in losses.items()}
    return layout, found


def main():
    """Writes the file."""
    spec = importlib.util.spec_from_file_location("weights", Path(sys.argv[1]) / "reference" / "reference_weights.py")
    weights = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(weights)
    contents = {}
    for name in NAMES:
        layout, found = outputs(name, weights)
        contents[f"{name}/layout"] = json.dumps(layout)
        contents |= {f"{name}/{key}": value for key, value in found.items()}
        print(name, {key: float(value) for key, value in found.items() if value.ndim == 0})

    np.savez_compressed(FILE, **contents)


if __name__ == "__main__":
    main()
