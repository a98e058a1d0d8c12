import pytest

from kerasdet.checkpoints.labels import names_of_classes, read_labels
from kerasdet.errors import UserError

NAMES = ["person", "N/A", "Kühlschrank", "N/A", "stop sign"]


@pytest.mark.parametrize(
    "content",
    [
        "\n".join(NAMES).encode(),
        "\n".join(["__background__", *NAMES, ""]).encode(),
        "\n".join(["background", *NAMES]).encode(),
        "\n".join(["BACKGROUND", *NAMES]).encode(),
        "\r\n".join([*NAMES, "", ""]).encode(),
        "\n".join(f"  {name}\t" for name in NAMES).encode("utf-8-sig"),
    ],
)
def test_labels_become_one_name_per_class(tmp_path, content):
    (tmp_path / "labels.txt").write_bytes(content)
    path = tmp_path / "labels.txt"
    assert names_of_classes(read_labels(path), 5, path) == tuple(NAMES)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (NAMES[:4], r"labels\.txt has 4 class names, but the model has 5 classes: expected one name for each class"),
        ([*NAMES, "cat"], r"has 6 class names, but the model has 5 classes"),
        (["__background__", *NAMES[:4]], r"has 4 class names after __background__, but the model has 5"),
        (["__background__", *NAMES, "cat"], r"has 6 class names after __background__, but"),
        (["background", *NAMES, "cat"], r"has 7 class names, but"),
    ],
)
def test_other_number_of_labels_raises(names, message):
    with pytest.raises(UserError, match=message):
        names_of_classes(names, 5, "labels.txt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0 cat\n1 dog\n", "begins its lines with class ids, such as '0 cat'"),
        ("1: cat\n0: dog\n", "with class ids, such as '1: cat'"),
        ("id,name\n1,cat\n2,dog\n", "with class ids, such as '1,cat'"),
        ('"cat",\n"dog"\n', "has more than names in its lines, such as '\"cat\",'"),
        ("cat:128,2,3::\ndog:0,0,9::\n", "has more than names in its lines, such as 'cat:128,2,3::'"),
        (
            "# label:color_rgb:parts:actions\ncat:128,2,3::\n",
            "has more than names in its lines, such as 'cat:128,2,3::'",
        ),
        ("1. cat\n2. dog\n", "begins its lines with class ids, such as '1. cat'"),
        ("{0: 'cat',\n1: 'dog'}\n", "begins with \"{0: 'cat',\""),
    ],
)
def test_list_with_more_than_names_raises(tmp_path, content, message):
    (tmp_path / "labels.txt").write_text(content)
    with pytest.raises(UserError, match=rf"{message}; expected one class name per line"):
        read_labels(tmp_path / "labels.txt")
    (tmp_path / "names.txt").write_text("2 wheeler\n4 wheeler\n7-seater\n")
    assert read_labels(tmp_path / "names.txt")[1] == "4 wheeler"


def test_class_that_is_named_background_stays():
    assert names_of_classes(["background", "cell"], 2, "labels.txt") == ("background", "cell")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cat\n\ndog\n", r"labels\.txt, line 2: the line is empty; expected a class name\. Write N/A"),
        (b"", r", line 1: the line is empty"),
        (b"cat\ndog\ncat\n", r", line 3: the name 'cat' is also in line 1; expected"),
        ("Kühl\n".encode("utf-16"), r"labels\.txt is not a text file in UTF-8"),
    ],
)
def test_damaged_list_raises(tmp_path, content, message):
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_labels(tmp_path / "labels.txt")
