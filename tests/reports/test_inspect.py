"""Builds a page about a small generated dataset with known faults, reads it as HTML and opens it in Chromium."""

import json
import re

import numpy as np
import pytest
import tiny
from models import models
from PIL import Image
from reports.pages import Reader, watched_tab

from kerasdet import cli
from kerasdet.data import CocoDataset, RandomFlip, ResizeShortestEdge, shapes
from kerasdet.errors import UserError
from kerasdet.geometry.anchors import AnchorGenerator, octave_sizes
from kerasdet.reports import inspect_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """train/ and val/: generated images. val repeats an image of train; train lacks a file, and a box has no area."""
    folder = tmp_path_factory.mktemp("inspect")
    for name, num_images, seed in (("train", 14, 1), ("val", 4, 2)):
        shapes.write(folder / name, num_images=num_images, seed=seed, image_size=(96, 96))
    images = sorted((folder / "train" / "images").iterdir())
    copy = sorted((folder / "val" / "images").iterdir())[0]
    Image.open(images[3]).save(copy, quality=70)
    images[5].unlink()
    annotations = folder / "train" / "annotations.json"
    data = json.loads(annotations.read_text())
    data["annotations"].append({**data["annotations"][0], "id": 10**6, "bbox": [5, 5, 0, 4]})
    annotations.write_text(json.dumps(data))
    return folder


@pytest.fixture(scope="module")
def splits(folder):
    return {
        name: CocoDataset(folder / name / "annotations.json", on_bad_image="skip", masks=True, keypoints=True)
        for name in ("train", "val")
    }


@pytest.fixture(scope="module")
def made(folder, splits):
    """The path of a page about both splits, for a detector whose anchors are far too large, and its findings."""
    pytest.importorskip("vl_convert")
    model = tiny.detector(num_classes=5, anchors=AnchorGenerator(octave_sizes(256), (0.5, 1.0, 2.0)))
    out = folder / "page.html"
    transforms = [ResizeShortestEdge((64,), 96), RandomFlip()]
    found = inspect_dataset(splits, out, title="Shapes <1>", source="test", model=model, transforms=transforms)
    return out, found


@pytest.fixture(scope="module")
def content(made):
    return Reader(made[0].read_text(encoding="utf-8"))


def test_page_is_one_file_without_links_to_others(content):
    assert all(target.startswith(("data:", "#")) for target in content.targets)
    assert len(content.ids) == len(set(content.ids))
    assert {target[1:] for target in content.targets if target.startswith("#")} <= set(content.ids)


def test_tables_count_images_and_objects(content, splits):
    (_, *rows) = content.tables["Splits"]
    for row, dataset in zip(rows, splits.values(), strict=True):
        boxes = [len(record.boxes) for record in dataset.records]
        assert row[1:4] == [str(len(boxes)), str(sum(boxes)), f"{np.mean(boxes):.1f}"]
    (_, *rows) = content.tables["Numbers of each class"]
    for name, train, val, images, _ in rows:
        class_id = splits["train"].class_names.index(name)
        counts = [sum(int((r.class_ids == class_id).sum()) for r in d.records) for d in splits.values()]
        assert [int(train), int(val)] == counts
        assert int(images) == sum((r.class_ids == class_id).any() for d in splits.values() for r in d.records)


def test_findings_say_what_is_wrong_and_what_to_do(made):
    found = {(finding.level, finding.section): finding for finding in made[1]}
    assert "1 image of train cannot be used" in found["problem", "problems"].text
    assert "1 object of train has no usable box" in found["advice", "problems"].text
    assert "1 image outside train looks like" in found["problem", "duplicates"].text
    assert re.match(
        r"(100|9\d)\s% of the objects have an IoU below 0.5 with every anchor at `SHORTEST_EDGE=64`; most are "
        r"smaller than the smallest anchor, 256 px", found["advice", "anchors"].text
    )  # fmt: skip
    levels = [finding.level for finding in made[1]]
    assert levels == sorted(levels, key=["problem", "advice", "good"].index)


def test_suggested_anchors_can_be_pasted(made, content):
    text = "".join(content.texts)
    options = dict(re.findall(r'--set "AnchorGenerator\.(\w+)=(\(.*?\))"', text))
    anchors = AnchorGenerator(sizes=eval(options["sizes"]), aspect_ratios=eval(options.get("aspect_ratios", "(1.0,)")))
    assert len(anchors.sizes) == 5 and max(anchors.sizes[0]) < 100


def test_samples_show_training_images(content, splits):
    shown = [image for image in content.images if "drawn" in image["alt"]]
    assert len(shown) == len(splits["train"])
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in shown)


def test_without_a_model_the_page_shows_sizes_of_the_files(folder, splits):
    pytest.importorskip("vl_convert")
    out = folder / "plain.html"
    inspect_dataset({"all": splits["val"]}, out)
    text = out.read_text(encoding="utf-8")
    assert "In pixels of the image files" in text and 'id="anchors"' not in text


def test_split_without_images_and_page_that_cannot_be_written_raise(folder, splits):
    empty = type("Empty", (), {"records": (), "annotations": "nothing.json"})()
    with pytest.raises(UserError, match=r"split val \(nothing.json\) has no usable image"):
        inspect_dataset({"train": splits["train"], "val": empty}, folder / "x.html")
    with pytest.raises(OSError, match=r"is a folder: expected a file"):
        inspect_dataset(splits, folder)


def test_problems_are_listed_by_file_and_annotation(content):
    (_, *rows) = content.tables["Files and objects"]
    assert ["000006.jpg", "does not exist", "Image files left out", "train"] in rows
    assert any(row[0] == "annotation 1000000 of 000001.jpg" and row[1] == 'has "bbox" [5, 5, 0, 4]' for row in rows)


def test_command_reads_splits_and_the_recipe(folder, capsys, caplog):
    pytest.importorskip("vl_convert")
    out = folder / "command.html"
    recipe = ["--config", "retinanet_r18_fpn_shapes", "--set", "BACKBONE_WIDTH=8"]
    assert cli.main(["inspect", str(folder), *recipe, "--out", str(out)]) == 0, capsys.readouterr().err
    assert [line for line in caplog.messages if ": COCO" in line] == [f"{folder}: COCO with the splits train, val"]
    printed = capsys.readouterr().out
    assert f"{out}: " in printed and "`" not in printed
    text = out.read_text(encoding="utf-8")
    assert "the shorter side of an image becomes 128 px" in text
    assert "<code>RandomFlip</code>" in text
    assert cli.main(["inspect", str(folder / "val" / "annotations.json"), "--set", "LR=1", "--out", str(out)]) == 2
    assert "--set changes a recipe" in capsys.readouterr().err


@pytest.fixture(params=[(1280, "light"), (390, "dark")], ids=["wide_light", "phone_dark"])
def opened(request, browser, made):
    """A tab with the page; every request and every message on its console is an error."""
    with watched_tab(browser, made[0], *request.param) as tab:
        yield tab


def test_theme_follows_the_system_and_the_button_overrides_it(opened):
    def brightness():
        colour = opened.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3

    button = opened.get_by_role("button", name="Dark theme")
    dark = opened.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    for expected in (dark, not dark, dark):
        assert (brightness() < 128) == expected
        assert button.get_attribute("aria-pressed") == str(expected).lower()
        button.click()


def test_pages_of_samples_turn(opened):
    gallery = opened.locator("#samples .paged")
    shown = gallery.locator("img:visible")
    first = shown.evaluate_all("images => images.map(image => image.alt)")
    assert gallery.get_by_role("status").text_content() == "1 to 6 of 13 images"
    gallery.get_by_role("button", name="Next").click()
    second = shown.evaluate_all("images => images.map(image => image.alt)")
    assert len(first) == len(second) == 6 and not set(first) & set(second)
    gallery.get_by_role("button", name="Next").click()
    assert gallery.get_by_role("status").text_content() == "13 to 13 of 13 images"
    assert gallery.get_by_role("button", name="Next").is_disabled()
    assert opened.evaluate("document.activeElement.textContent") == "Previous"


def test_tables_sort(opened):
    table = opened.locator("table", has_text="Numbers of each class")
    table.get_by_role("button", name="val").click()
    values = [int(text) for text in table.locator("tbody td:nth-child(3)").all_text_contents()]
    assert values == sorted(values, reverse=True)
    assert table.locator("th[aria-sort=descending]").text_content() == "val"


def test_keyboard_reaches_everything_in_the_order_of_the_page(opened):
    reached = []
    for _ in range(12):
        opened.keyboard.press("Tab")
        reached.append(opened.evaluate("document.activeElement.textContent.trim()"))
    sections = [
        "Summary",
        "Splits",
        "Classes",
        "Object sizes",
        "Anchors",
        "Problems",
        "Near duplicates",
        "Training samples",
    ]
    assert reached[:10] == ["Skip to the content", "Dark theme", *sections]
    assert reached[10] == "Details"
    assert opened.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"


def test_marks_of_charts_have_tooltips(opened):
    opened.locator("#sizes .chart:visible [role=graphics-symbol][aria-roledescription=bar]").nth(0).hover(force=True)
    assert re.fullmatch(r"[\d.]+ to [\d.]+ px: \d+ objects?.*", opened.locator("#tooltip").text_content())


def test_nothing_is_wider_than_the_screen(opened):
    width, screen = opened.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width <= screen


def test_axe_finds_no_violation(opened):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    opened.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    result = axe.Axe().run(opened)
    assert result.response["passes"]
    assert result.violations_count == 0, result.generate_report()


@pytest.mark.parametrize("name", ["ssd", "rtmdet"])
def test_detector_whose_matcher_cannot_be_examined_has_no_section_about_anchors(name, splits, tmp_path):
    pytest.importorskip("vl_convert")
    model = {"ssd": models.ssd, "rtmdet": models.rtmdet}[name]()
    found = inspect_dataset({"val": splits["val"]}, tmp_path / "page.html", model=model)
    assert "anchors" not in {finding.section for finding in found}
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert ("every image is stretched to 96 x 96 px" in text) == (name == "ssd")
