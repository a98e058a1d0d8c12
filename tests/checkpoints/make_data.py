"""Makes tests/checkpoints/data/*.pth with torch: python make_data.py. torch 2.13.0 made the files in the repository."""

import argparse
from collections import OrderedDict
from pathlib import Path

import numpy as np

DATA = Path(__file__).parent / "data"


def expected():
    """Makes the contents of every file of the folder without torch."""
    base = np.arange(20, dtype=np.float32) / 8 - 1
    return {
        "base": base,
        "slice": base[6:18].reshape(3, 4)[:, 1:3],
        "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "expanded": np.full((4, 2), 2.5, np.float32),
        "parameter": np.array([[1.5, -2]], np.float32),
        "double": np.array([0.5, 1e-3, 3], np.float64).astype(np.float32),
        "half": np.array([0.1, -65504, np.inf], np.float16).astype(np.float32),
        "bfloat16": np.array([1, -0.15625, 3.3895314e38], np.float32),
        "num_batches_tracked": np.array(7, np.int64),
        "int32": np.array([-(2**31), 5], np.int32),
        "int16": np.array([-300, 5], np.int16),
        "int8": np.array([-3, 5], np.int8),
        "uint8": np.array([200, 5], np.uint8),
        "bool": np.array([True, False, True]),
        "empty": np.zeros((0, 3), np.float32),
    }


def main():
    """Writes the files."""
    import torch

    base = torch.arange(20, dtype=torch.float32) / 8 - 1
    state = OrderedDict(
        base=base,
        slice=base[6:18].view(3, 4)[:, 1:3],
        transposed=torch.arange(6, dtype=torch.float32).view(2, 3).t(),
        expanded=torch.tensor([2.5]).expand(4, 2),
        parameter=torch.nn.Parameter(torch.tensor([[1.5, -2]])),
        double=torch.tensor([0.5, 1e-3, 3], dtype=torch.float64),
        half=torch.tensor([0.1, -65504, float("inf")], dtype=torch.float16),
        bfloat16=torch.tensor([1, -0.15625, 3.3895314e38], dtype=torch.bfloat16),
        num_batches_tracked=torch.tensor(7),
        int32=torch.tensor([-(2**31), 5], dtype=torch.int32),
        int16=torch.tensor([-300, 5], dtype=torch.int16),
        int8=torch.tensor([-3, 5], dtype=torch.int8),
        uint8=torch.tensor([200, 5], dtype=torch.uint8),
        bool=torch.tensor([True, False, True]),
        empty=torch.zeros(0, 3),
    )
    state._metadata = OrderedDict({"": {"version": 1}})
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [16, 22])
    training = {
        "model": OrderedDict((f"module.{name}", value) for name, value in state.items()),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
        "epoch": 3,
        "args": argparse.Namespace(data_path=Path("coco"), device=torch.device("cpu"), size=torch.Size([800, 1333])),
    }
    mmdet = {
        "meta": {"epoch": 12, "time": "now", "CLASSES": ("cat", "dog"), "seed": np.float64(3), "ids": {1, 2}},
        "state_dict": state,
        "optimizer": optimizer.state_dict(),
    }
    DATA.mkdir(exist_ok=True)
    torch.save(state, DATA / "state_zip.pth")
    torch.save(state, DATA / "state_legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(training, DATA / "torchvision_training.pth")
    torch.save(mmdet, DATA / "mmdet_legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(state, DATA / "state_protocol4.pth", pickle_protocol=4)


if __name__ == "__main__":
    main()
