import numpy as np
import pytest
from PIL import Image

from kerasdet.data import VocDataset, evaluation_batches
from kerasdet.errors import UserError
from kerasdet.evaluation import evaluate_coco


def item(name, box, difficult=None, extra=""):
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    mark = "" if difficult is None else f"<difficult>{difficult}</difficult>"
    return f"<object><name>{name}</name>{mark}{extra}<bndbox>{corners}</bndbox></object>"


def write(root, images, split="trainval"):
    """Writes VOC folders with gray images of 20x30 pixels; `images` maps names to objects."""
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "ImageSets/Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in images))
    (root / "ImageSets/Main" / f"cat_{split}.txt").write_text("".join(f"{name} -1\n" for name in images))
    for name, objects in images.items():
        Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(root / "JPEGImages" / f"{name}.jpg")
        size = "<size><width>30</width><height>20</height><depth>3</depth></size>"
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{''.join(objects)}</annotation>")
    return root


def test_records_follow_the_lists(tmp_path):
    part = "<part><name>head</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></part>"
    root = write(
        tmp_path,
        {
            "000012": [item("person", (1, 1, 30, 20), 0), item("cat", (5, 6, 10, 12), 1, part)],
            "000007": [],
            "000009": [item("aeroplane", (11.5, 3, 40, 8)), item("dog", (40, 3, 50, 8))],
        },
    )
    dataset = VocDataset(root, "trainval")
    assert dataset.num_classes == 20 and dataset.category_ids == tuple(range(1, 21))
    assert [record.image_id for record in dataset.records] == [12, 7, 9] and len(dataset) == 3
    first, second, third = dataset.records
    np.testing.assert_array_equal(first.boxes, [[0, 0, 20, 30], [5, 4, 12, 10]])
    assert [dataset.class_names[i] for i in first.class_ids] == ["person", "cat"]
    assert first.is_crowd.tolist() == [False, False] and first.path.endswith("JPEGImages/000012.jpg")
    assert second.boxes.shape == (0, 4)
    np.testing.assert_array_equal(third.boxes, [[2, 10.5, 8, 30]])
    counts = {"images": 3, "boxes": 3, "difficult_boxes": 1, "clipped_boxes": 1, "outside_boxes": 1}
    assert counts.items() <= dataset.counts.items()
    assert len(VocDataset(root, "trainval", keep_images_without_objects=False)) == 2
    [batch] = evaluation_batches(dataset, 3).as_numpy_iterator()
    assert batch["image_id"].tolist() == [12, 7, 9] and batch["boxes"].shape == (3, 2, 4)


def test_image_ids_are_digits_or_positions(tmp_path):
    a = write(tmp_path / "a", {"000001": [item("cat", (1, 1, 9, 9))]})
    b = write(tmp_path / "b", {"2008_000001": [], "2008_000002": []})
    assert [r.image_id for r in VocDataset((a, b), "trainval").records] == [1, 2008000001, 2008000002]
    c = write(tmp_path / "c", {"street": [item("tram", (1, 1, 9, 9))], "000001": []})
    dataset = VocDataset(c, "trainval", class_names=("tram",))
    assert [record.image_id for record in dataset.records] == [1, 2] and dataset.num_classes == 1


def test_difficult_objects_do_not_count_in_evaluation(tmp_path):
    images = {"1": [item("cat", (1, 1, 10, 10)), item("cat", (11, 11, 30, 20), 1)], "2": [item("dog", (1, 1, 30, 20))]}
    truth = VocDataset(write(tmp_path, images), "trainval").ground_truth
    assert [a["difficult"] for a in truth["annotations"]] == [0, 1, 0]

    def ap(*boxes):
        results = [{"image_id": 1, "category_id": 8, "bbox": box, "score": score} for box, score in boxes]
        return evaluate_coco(truth, results).per_class["cat"]

    easy, difficult, inside_difficult = [0, 0, 10, 10], [10, 10, 20, 10], [12, 12, 5, 5]
    assert ap((easy, 0.5)) == pytest.approx(1)
    assert ap((easy, 0.5), (difficult, 0.9)) == pytest.approx(1)
    assert ap((easy, 0.5), (inside_difficult, 0.9)) == pytest.approx(
        0.5
    )  # Half of a difficult box is a false positive.


@pytest.mark.parametrize(
    "text, message",
    [
        (
            item("unicorn", (1, 1, 9, 9)),
            r"1\.xml: object 1 has the class 'unicorn'; expected one of aeroplane",
        ),
        (item("cat", (1, 1, 9, "x")), r"1\.xml: object 1 has the <ymax> 'x' in <bndbox>; expected a number"),
        ("<object><name>cat</name></object>", "has no <xmin> in <bndbox>; expected a number. Add it"),
        ("<object></object>", "object 1 has no <name>; expected the name of its class"),
        ("<object>", "1.xml is not valid XML"),
        ("<size><height>-3</height></size>", None),
    ],
)
def test_errors_name_file_and_object(tmp_path, text, message):
    root = write(tmp_path, {"1": [text]})
    if message is None:
        (root / "Annotations/1.xml").write_text(f"<annotation>{text}</annotation>")
        message = "has the <height> -3 in <size>; expected a positive integer"
    with pytest.raises(UserError, match=message):
        VocDataset(root, "trainval")


def test_missing_files_raise_and_bad_images_can_be_skipped(tmp_path):
    root = write(tmp_path, {"1": [], "2": []})
    with pytest.raises(FileNotFoundError, match=r"test\.txt does not exist\. Choose one of these splits: trainval\."):
        VocDataset(root, "test")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        VocDataset(tmp_path / "nowhere", "test")
    (root / "JPEGImages/2.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 of 2 images .*2\.jpg: does not exist"):
        VocDataset(root, "trainval")
    assert [record.image_id for record in VocDataset(root, "trainval", on_bad_image="skip").records] == [1]
    (root / "Annotations/1.xml").unlink()
    with pytest.raises(FileNotFoundError, match=r"1\.xml"):
        VocDataset(root, "trainval")
    (root / "ImageSets/Main/trainval.txt").write_text("\n")
    with pytest.raises(ValueError, match="lists no image"):
        VocDataset(root, "trainval")


def test_names_of_images_and_lists_may_have_any_form(tmp_path):
    names = ["plain", "screenshot 2020-12-16 16.42.21", "upper", "other", "web", "label 1", "dotted.v2"]
    root = write(tmp_path, {name: [item("cat", (1, 1, 9, 9))] for name in names})
    lines = ["plain -1", names[1], "upper.JPG", "other  1", "web", "label 1", "dotted.v2"]
    (root / "ImageSets/Main/trainval.txt").write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    expected = dict(zip(names, ("jpg", "jpg", "JPG", "png", "webp", "jpg", "jpg"), strict=True))
    for name, suffix in expected.items():
        path = root / "JPEGImages" / f"{name}.jpg"
        if suffix == "JPG":
            path.rename(path.with_suffix(".JPG"))
        elif suffix != "jpg":
            Image.open(path).save(path.with_suffix(f".{suffix}"))
            path.unlink()
    dataset = VocDataset(root, "trainval")
    assert [r.path.rsplit("/", 1)[1] for r in dataset.records] == [f"{name}.{end}" for name, end in expected.items()]


def test_two_images_of_one_name_need_the_name_in_the_xml(tmp_path):
    root = write(tmp_path, {"a": [item("cat", (1, 1, 9, 9))]})
    image = Image.open(root / "JPEGImages/a.jpg")
    image.save(root / "JPEGImages/a.png")
    image.save(root / "JPEGImages/a.bmp")
    assert VocDataset(root, "trainval").records[0].path.endswith("a.jpg")
    (root / "JPEGImages/a.jpg").unlink()
    with pytest.raises(UserError, match=r"several images for a: a\.bmp, a\.png"):
        VocDataset(root, "trainval")
    xml = root / "Annotations/a.xml"
    xml.write_text(xml.read_text().replace("<size>", "<filename>a.png</filename><size>"))
    assert VocDataset(root, "trainval").records[0].path.endswith("a.png")


@pytest.mark.parametrize(
    "old, new, count",
    [
        ("<width>30</width><height>20</height>", "<width>0</width><height>0</height>", "missing_sizes"),
        ("<size><width>30</width><height>20</height><depth>3</depth></size>", "", "missing_sizes"),
        ("<difficult>0</difficult>", "<difficult>Unspecified</difficult>", None),
        ("<difficult>0</difficult>", "", None),
        ("<name>cat</name>", "<name> cat </name>", None),
    ],
)
def test_other_forms_of_an_xml_give_the_same_records(tmp_path, old, new, count):
    root = write(tmp_path, {"a": [item("cat", (2, 3, 9, 9), 0)]})
    [expected] = VocDataset(root, "trainval").records
    xml = root / "Annotations/a.xml"
    assert old in xml.read_text()
    xml.write_text(xml.read_text().replace(old, new))
    dataset = VocDataset(root, "trainval")
    [record] = dataset.records
    assert (record.height, record.width) == (20, 30)
    np.testing.assert_array_equal(record.boxes, expected.boxes)
    assert dataset.counts.get(count, 0) == (1 if count else 0) and "difficult_boxes" not in dataset.counts
    assert [a["difficult"] for a in dataset.ground_truth["annotations"]] == [0]


def test_wrong_flags_and_repeated_class_names_raise(tmp_path):
    root = write(tmp_path, {"a": [item("cat", (2, 3, 9, 9), "perhaps")]})
    with pytest.raises(UserError, match=r"a\.xml: object 1 has the <difficult> 'perhaps'; expected 0 or 1"):
        VocDataset(root, "trainval")
    with pytest.raises(UserError, match="class_names has a name more than once: cat, cat"):
        VocDataset(root, "trainval", class_names=("cat", "cat"))
