import pytest
from foreign_data import SIZE, picture, write_text

from kerasdet.data import open_dataset
from kerasdet.errors import UserError

XML = """<annotation><folder>x</folder><filename>{file}</filename><path>C:\\pics\\{file}</path>
<size><width>{w}</width><height>{h}</height><depth>3</depth></size>{objects}</annotation>"""
OBJECT = """<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>11</xmin><ymin>6</ymin><xmax>30</xmax>
<ymax>25</ymax></bndbox></object>"""
BOX = [5, 10, 25, 30]


def write(xml, image, *names, file=None):
    picture(image, 0)
    objects = "".join(OBJECT.format(name=name) for name in names)
    write_text(xml, XML.format(file=file or image.name, h=SIZE[0], w=SIZE[1], objects=objects))


def test_labelimg_beside_images(tmp_path):
    write(tmp_path / "a.xml", tmp_path / "a.png", "dog")
    write(tmp_path / "b c.xml", tmp_path / "b c.JPG", "cat")
    write(tmp_path / "d.xml", tmp_path / "d.jpeg")
    dataset = open_dataset(tmp_path)
    assert dataset.class_names == ("cat", "dog")
    assert [record.boxes.tolist() for record in dataset.records] == [[BOX], [BOX], []]
    assert [record.class_ids.tolist() for record in dataset.records] == [[1], [0], []]


@pytest.mark.parametrize("xml,image", [("annotations", "images"), ("Annotations", "JPEGImages"), ("labels", "img")])
def test_labelimg_in_two_folders(tmp_path, xml, image):
    write(tmp_path / xml / "a.xml", tmp_path / image / "a.png", "dog")
    assert open_dataset(tmp_path).records[0].boxes.tolist() == [BOX]


def test_only_folder_of_images_beside_the_xml_is_searched(tmp_path):
    write(tmp_path / "labels/a.xml", tmp_path / "data/a.png", "dog")
    assert open_dataset(tmp_path).records[0].boxes.tolist() == [BOX]
    picture(tmp_path / "masks/a.png", 0)
    with pytest.raises(UserError, match=r"labels/a\.png: does not exist"):
        open_dataset(tmp_path)


def test_folders_of_xml_files_and_images_have_the_same_splits(tmp_path):
    for split, name in (("train", "cat"), ("val", "dog")):
        write(tmp_path / "annotations" / split / "a.xml", tmp_path / "images" / split / "a.png", name)
    for split in ("train", "val"):
        assert f"/images/{split}/" in open_dataset(tmp_path, split).records[0].path


def test_images_of_another_split_are_not_taken(tmp_path):
    write(tmp_path / "train/a.xml", tmp_path / "val/a.png", "dog")
    with pytest.raises(UserError, match=r"train/a\.png: does not exist"):
        open_dataset(tmp_path, "train")


def test_roboflow_voc(tmp_path):
    for split, name in (("train", "cat"), ("valid", "dog")):
        write(tmp_path / split / "a.xml", tmp_path / split / "a.png", name)
    dataset = open_dataset(tmp_path, "val")
    assert dataset.class_names == ("cat", "dog")
    assert dataset.records[0].class_ids.tolist() == [1]
    assert "/valid/" in dataset.records[0].path


def test_tree_with_lists(tmp_path):
    root = tmp_path / "VOCdevkit/VOC2007"
    for name in ("a", "b"):
        write(root / f"Annotations/{name}.xml", root / f"JPEGImages/{name}.jpg", "dog")
    for split, names in (("train", "a"), ("val", "b"), ("dog_train", "a 1"), ("trainval", "a\nb")):
        write_text(root / f"ImageSets/Main/{split}.txt", f"{names}\n")
    for path in (tmp_path, root.parent, root):
        assert [record.path[-5] for record in open_dataset(path, "val").records] == ["b"]
        assert len(open_dataset(path, "trainval")) == 2
    with pytest.raises(UserError, match="no split test; it has train, trainval, val"):
        open_dataset(root, "test")


def test_annotations_in_no_list_are_counted(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"Annotations/{name}.xml", tmp_path / f"JPEGImages/{name}.jpg", "dog")
    write_text(tmp_path / "ImageSets/Main/train.txt", "a\n")
    dataset = open_dataset(tmp_path, "train")
    assert len(dataset) == 1
    assert dataset.counts["unlisted_annotations"] == 1


@pytest.mark.parametrize("is_listed", [True, False])
def test_suffix_in_capitals(tmp_path, is_listed):
    write(tmp_path / "Annotations/a.XML", tmp_path / "JPEGImages/a.jpg", "dog")
    if is_listed:
        write_text(tmp_path / "ImageSets/Main/train.txt", "a\n")
    assert open_dataset(tmp_path).records[0].boxes.tolist() == [BOX]


def test_image_is_found_by_its_filename(tmp_path):
    write(tmp_path / "0001.xml", tmp_path / "photo.png", "dog")
    assert open_dataset(tmp_path).records[0].path.endswith("photo.png")


def test_class_list_gives_the_order(tmp_path):
    write(tmp_path / "a.xml", tmp_path / "a.png", "dog")
    write_text(tmp_path / "labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\nfox:::\ndog:1,2,3::\n")
    dataset = open_dataset(tmp_path)
    assert dataset.class_names == ("fox", "dog")
    assert dataset.records[0].class_ids.tolist() == [1]


def test_damaged_xml_is_named(tmp_path):
    write(tmp_path / "a.xml", tmp_path / "a.png", "dog")
    write_text(tmp_path / "b.xml", "<annotation><object>")
    with pytest.raises(UserError, match=r"b\.xml is not valid XML"):
        open_dataset(tmp_path)


def test_lists_of_classes_hold_each_image_once(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"Annotations/{name}.xml", tmp_path / f"JPEGImages/{name}.jpg", "dog")
    for kind in ("cat", "dog"):
        write_text(tmp_path / f"ImageSets/Main/{kind}_train.txt", "a 1\nb -1\n")
    assert len(open_dataset(tmp_path, "train")) == 2
    write_text(tmp_path / "ImageSets/Main/train.txt", "a\na\n")
    dataset = open_dataset(tmp_path, "train")
    assert (len(dataset), dataset.counts["repeated_images"]) == (1, 1)


def test_class_list_keeps_colons_and_the_name_background(tmp_path):
    write(tmp_path / "a.xml", tmp_path / "a.png", "a:b", "background")
    write_text(tmp_path / "classes.txt", "background\na:b\n")
    assert open_dataset(tmp_path).records[0].class_ids.tolist() == [1, 0]


def test_names_of_other_images_and_images_without_xml_are_counted(tmp_path):
    write(tmp_path / "a.xml", tmp_path / "a.png", "dog", file="b.png")
    picture(tmp_path / "b.png", 1)
    dataset = open_dataset(tmp_path)
    assert [record.path for record in dataset.records] == [str(tmp_path / "a.png")]
    assert {"contradicting_names": 1, "images_without_file": 1}.items() <= dataset.counts.items()


def change(path, old, new):
    write_text(path, path.read_text().replace(old, new))


def test_swapped_corners_are_turned_and_others_refused(tmp_path):
    write(tmp_path / "a.xml", tmp_path / "a.png", "dog", "cat")
    change(tmp_path / "a.xml", "<xmin>11</xmin>", "<xmin>31</xmin>")
    dataset = open_dataset(tmp_path)
    assert dataset.records[0].boxes.tolist() == [[5, 29, 25, 31]] * 2
    assert dataset.counts["swapped_corners"] == 2
    change(tmp_path / "a.xml", "</object><object><name>cat</name><difficult>0</difficult>", "")
    with pytest.raises(UserError, match=r"object 1 has 2 elements <bndbox>; expected one"):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path, on_bad_object="skip", classes=["dog"]).counts["boxes"] == 0


def test_fractions_raise(tmp_path):
    write(tmp_path / "a.xml", tmp_path / "a.png", "dog")
    for old, new in (("11<", "0.1<"), ("30<", "1<"), ("6<", "0<"), ("25<", "0.9<")):
        change(tmp_path / "a.xml", old, new)
    with pytest.raises(UserError, match="no box has a number above 1"):
        open_dataset(tmp_path)


def test_one_of_two_images_with_a_name_must_be_named(tmp_path):
    write(tmp_path / "a.xml", tmp_path / "a.png", "dog")
    picture(tmp_path / "a.jpg", 1)
    assert open_dataset(tmp_path).records[0].path.endswith("a.png")
    change(tmp_path / "a.xml", "<filename>a.png", "<filename>x.png")
    with pytest.raises(UserError, match=r"a.xml matches two images, .*a.jpg and .*a.png; expected one image"):
        open_dataset(tmp_path)


def test_lists_with_suffixes_and_objects_without_a_name(tmp_path):
    write(tmp_path / "Annotations/a.xml", tmp_path / "JPEGImages/a.png", "dog", "")
    write_text(tmp_path / "ImageSets/Main/train.txt", "a.png\n")
    with pytest.raises(UserError, match=r"a.xml: object 2 has no <name>; expected the name of its class"):
        open_dataset(tmp_path, "train")


@pytest.mark.parametrize(("tag", "kind"), [("polygon", "polygon"), ("robndbox", "rotated box")])
def test_outlines_without_a_box_are_named(tmp_path, tag, kind):
    write(tmp_path / "a.xml", tmp_path / "a.png", "dog")
    text = (tmp_path / "a.xml").read_text()
    write_text(tmp_path / "a.xml", text.replace("bndbox", tag))
    with pytest.raises(UserError, match=rf"object 1 has a {kind} \(<{tag}>\) and no <bndbox>; expected an upright box"):
        open_dataset(tmp_path)
    write_text(tmp_path / "a.xml", text.replace("</bndbox>", f"</bndbox><{tag}><x1>3</x1></{tag}>"))
    assert open_dataset(tmp_path).counts["other_outlines"] == 1


def test_empty_list_names_its_split(tmp_path):
    write(tmp_path / "Annotations/a.xml", tmp_path / "JPEGImages/a.png", "dog")
    write_text(tmp_path / "ImageSets/Main/train.txt", "")
    write_text(tmp_path / "ImageSets/Main/val.txt", "a\n")
    with pytest.raises(UserError, match="the list of the split train in ImageSets/Main names no image"):
        open_dataset(tmp_path, "train")
