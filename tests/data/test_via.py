import numpy as np
import pytest
from foreign_data import picture, write_json

from kerasdet.data import open_dataset
from kerasdet.errors import UserError


def entry(*regions):
    return {"filename": "a.png", "size": 1, "regions": list(regions), "file_attributes": {}}


def region(shape, **attributes):
    return {"shape_attributes": shape, "region_attributes": attributes}


RECT = {"name": "rect", "x": 5, "y": 6, "width": 10, "height": 20}


@pytest.mark.parametrize("project", [True, False])
def test_regions(tmp_path, project):
    picture(tmp_path / "a.png", 0)
    regions = [
        region(RECT, type="cat"),
        region({"name": "polygon", "all_points_x": [1, 11, 6], "all_points_y": [2, 2, 12]}, type="dog"),
        region({"name": "circle", "cx": 30, "cy": 20, "r": 10}, type={"dog": True}),
        region({"name": "ellipse", "cx": 30, "cy": 20, "rx": 10, "ry": 5, "theta": np.pi / 2}, type="dog"),
        region({"name": "point", "cx": 3, "cy": 2}, type="dog"),
    ]
    files = {"a.png1": entry(*regions)}
    data = {"_via_settings": {}, "_via_img_metadata": files, "_via_attributes": {}} if project else files
    write_json(tmp_path / "via_export.json", data)
    dataset = open_dataset(tmp_path)
    expected = [[6, 5, 26, 15], [2, 1, 12, 11], [10, 20, 30, 40], [10, 25, 30, 35]]
    np.testing.assert_allclose(dataset.records[0].boxes, expected, atol=1e-4)
    assert dataset.class_names == ("cat", "dog")
    assert dataset.records[0].class_ids.tolist() == [0, 1, 1, 1]
    assert dataset.counts["shapes_without_area"] == 1


def test_regions_without_attributes_are_objects(tmp_path):
    picture(tmp_path / "train/a.png", 0)
    write_json(tmp_path / "train/via_region_data.json", {"a": {**entry(), "regions": {"0": region(RECT)}}})
    dataset = open_dataset(tmp_path, "train")
    assert dataset.class_names == ("object",)
    assert dataset.records[0].boxes.tolist() == [[6, 5, 26, 15]]


def test_bad_regions_are_named(tmp_path):
    picture(tmp_path / "a.png", 0)
    path = write_json(tmp_path / "via.json", {"a": entry(region({"name": "rect", "x": 5}))})
    with pytest.raises(UserError, match=r"region 1 of a\.png"):
        open_dataset(path)
    write_json(path, {"a": entry(region(RECT, colour="red", size="large"))})
    with pytest.raises(UserError, match="colour, size"):
        open_dataset(path)


def test_numbers_of_options_become_their_names(tmp_path):
    picture(tmp_path / "a.png", 0)
    attributes = {"region": {"kind": {"type": "dropdown", "options": {"1": "cat", "2": "dog"}}}}
    files = {"a": entry(region(RECT, kind="2"), region(RECT, kind="1"))}
    write_json(tmp_path / "via.json", {"_via_attributes": attributes, "_via_img_metadata": files})
    dataset = open_dataset(tmp_path)
    assert dataset.class_names == ("cat", "dog")
    assert dataset.records[0].class_ids.tolist() == [1, 0]
    assert dataset.counts["mapped_options"] == 2


def test_attributes_beside_the_class_are_counted(tmp_path, caplog):
    picture(tmp_path / "a.png", 0)
    write_json(tmp_path / "via.json", {"a": entry(region(RECT, name="Tom", species="cat"))})
    with caplog.at_level("INFO", "kerasdet"):
        assert open_dataset(tmp_path).counts["other_attributes"] == 1
    assert "via.json has the classes in name; species left out)" in caplog.text


def test_two_attributes_of_one_name_raise(tmp_path):
    picture(tmp_path / "a.png", 0)
    path = write_json(tmp_path / "via.json", {"a": entry(region(RECT, Class="x"), region(RECT, **{"class": "y"}))})
    with pytest.raises(UserError, match="have the attributes Class, class; expected one"):
        open_dataset(path)


def test_bad_regions_are_skipped_on_request(tmp_path):
    picture(tmp_path / "a.png", 0)
    path = write_json(tmp_path / "via.json", {"a": entry(region({"name": "rect", "x": 5}), region(RECT))})
    dataset = open_dataset(path, on_bad_object="skip")
    assert (dataset.counts["boxes"], dataset.counts["bad_objects"]) == (1, 1)


def test_several_classes_of_a_region_raise(tmp_path):
    picture(tmp_path / "a.png", 0)
    path = write_json(tmp_path / "via.json", {"a": entry(region(RECT, kind={"cat": True, "dog": True}))})
    with pytest.raises(UserError, match=r"region 1 of a.png has kind cat, dog; expected one class"):
        open_dataset(path)
    write_json(path, {"a": entry(region(RECT, kind=["cat"]), region(RECT, kind={"dog": True}))})
    assert open_dataset(path).class_names == ("cat", "dog")


def test_files_of_a_folder_are_joined(tmp_path):
    for name, kind in (("a", "dog"), ("b", "cat")):
        picture(tmp_path / f"{name}.png", 0)
        write_json(
            tmp_path / f"part_{name}.json", {name: {**entry(region(RECT, kind=kind)), "filename": f"{name}.png"}}
        )
    dataset = open_dataset(tmp_path)
    assert dataset.class_names == ("cat", "dog")
    assert [record.path for record in dataset.records] == [str(tmp_path / f"{name}.png") for name in "ab"]
    assert [record.class_ids.tolist() for record in dataset.records] == [[1], [0]]
    write_json(tmp_path / "older.json", {"a": entry()})
    with pytest.raises(UserError, match=r"older.json and .*part_a.json both annotate the image .*a.png; expected one"):
        open_dataset(tmp_path)
