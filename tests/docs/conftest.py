"""Makes the folder in which a reader of the documentation works: a dataset, photos, and weights in a cache."""

import json
import shutil

import doc_blocks
import pytest
import tiny

from kerasdet.checkpoints import cache, zoo
from kerasdet.data import shapes


def write_mine(folder):
    """Writes a dataset as users have it: train.json, val.json and images/."""
    (folder / "images").mkdir(parents=True)
    for split, seed in (("train", 0), ("val", 1)):
        annotations = shapes.write(folder.parent / "generated" / split, num_images=4, seed=seed, image_size=(64, 96))
        contents = json.loads(annotations.read_text())
        for image in contents["images"]:
            name = f"{split}_{image['file_name']}"
            shutil.copy(annotations.parent / "images" / image["file_name"], folder / "images" / name)
            image["file_name"] = name
        (folder / f"{split}.json").write_text(json.dumps(contents))


@pytest.fixture(scope="session")
def reader(tmp_path_factory):
    """The session of a reader in a folder with mine/, photos, and a tiny detector as published weights."""
    folder = tmp_path_factory.mktemp("reader")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("KERASDET_HOME", str(folder / "cache"))
        model = tiny.talkative(class_names=("person", "bicycle", "car", "motorcycle", "airplane"))
        model.save(folder / "tiny.keras")
        text = "".join(page.read_text() for page in doc_blocks.PAGES)
        for weights in zoo.ZOO.values():
            if weights.task != "backbone" and weights.name in text:
                target = cache.converted_folder(weights) / "model.keras"
                target.parent.mkdir(parents=True)
                shutil.copy(folder / "tiny.keras", target)
        write_mine(folder / "mine")
        for name in ("photo.jpg", "street.jpg"):
            shutil.copy(folder / "mine" / "images" / "val_000001.jpg", folder / name)
        yield doc_blocks.Session(patch)


@pytest.fixture(scope="session")
def trained(reader):
    """The same session after the training that README begins with, in runs/mine."""
    command = next(
        line
        for block in doc_blocks.read_blocks(doc_blocks.ROOT / "README.md")
        if block.language == "bash" and block.kind != "check"
        for line in doc_blocks.commands(doc_blocks.tiny_code(block))
        if line.startswith("kerasdet train")
    )
    reader.command(command)
    return reader
