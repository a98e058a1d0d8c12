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
