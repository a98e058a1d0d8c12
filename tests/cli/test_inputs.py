import pytest

from kerasdet.cli.inputs import image_files, media_files
from kerasdet.errors import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """b.jpg, a.PNG, notes.txt, .hidden.jpg, deep/c.jpg and empty/ in the current folder."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "empty").mkdir()
    for name in ("b.jpg", "a.PNG", "notes.txt", ".hidden.jpg", "deep/c.jpg"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_folder_gives_its_visible_images_sorted(folder, caplog):
    caplog.set_level("INFO", "kerasdet")
    assert image_files([str(folder)]) == [str(folder / "a.PNG"), str(folder / "b.jpg")]
    assert caplog.messages == [f"{folder}: folders, and files without the suffix of an image, are left out (3)."]


def test_files_keep_the_order_of_the_command_line_and_need_not_exist(folder):
    assert image_files(["b.jpg", "absent.jpg", "a.PNG"]) == ["b.jpg", "absent.jpg", "a.PNG"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [("*.jpg", ["b.jpg"]), ("**/*.jpg", ["b.jpg", "deep/c.jpg"]), ("[ab].*", ["a.PNG", "b.jpg"])],
)
def test_quoted_glob_gives_sorted_files(folder, pattern, found):
    assert image_files([pattern]) == found


def test_glob_leaves_out_files_that_are_not_named_like_images(folder, caplog):
    caplog.set_level("INFO", "kerasdet")
    (folder / "data.bin").touch()
    assert image_files(["[abn]*"]) == ["a.PNG", "b.jpg"]
    assert caplog.messages == ["[abn]*: files without the suffix of an image are left out (1)."]
    assert image_files(["*.bin"]) == ["data.bin"]


def test_file_whose_name_looks_like_a_glob_is_that_file(folder):
    (folder / "[ab].jpg").touch()
    assert image_files(["[ab].jpg"]) == ["[ab].jpg"]


def test_list_names_files_folders_and_globs(folder):
    (folder / "list.txt").write_text("# comment\n\nb.jpg\ndeep\n  *.PNG  \n")
    assert image_files(["@list.txt", "b.jpg"]) == ["b.jpg", "deep/c.jpg", "a.PNG", "b.jpg"]


def test_list_without_its_sign_raises(folder):
    with pytest.raises(UserError, match=r"^notes.txt is a text file: .* pass @notes.txt\.$"):
        media_files(["b.jpg", "notes.txt"])


def test_list_expands_the_home_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    (folder / "list.txt").write_text("~/b.jpg\n")
    assert image_files(["@list.txt"]) == [str(folder / "b.jpg")]


def test_words_of_predict_may_be_videos(folder):
    words = ["street.MP4", "rtsp://host/a?key=*", "7", "b.jpg", "*.mp4", "[bc].*"]
    (folder / "c.mp4").touch()
    assert media_files(words) == [*words[:4], "c.mp4", "b.jpg", "c.mp4"]
    with pytest.raises(UserError, match=r"https://host/a\.jpg is a URL"):
        media_files(["https://host/a.jpg"])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("*.tif", r"No file matches \*\.tif"),
        ("empty", r"The folder empty holds no image \(\.jpg, .*\): name a folder of images"),
        ("@absent.txt", r"list of images absent\.txt cannot be read: No such file or directory"),
        ("@notes.txt", r"list of images notes\.txt is empty: write one path per line"),
        ("@binary", "binary is not a text file"),
        ("https://example.org/a.jpg?size=1", r"^https://example\.org/a\.jpg\?size=1 is a URL: expected .* Download"),
        ("street.MP4", r"^street\.MP4 is a video: expected images\. Extract its frames"),
    ],
)
def test_word_without_an_image_is_an_error(folder, word, message):
    (folder / "binary").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(UserError, match=message):
        image_files([word])


def test_list_of_paths_beside_it_says_what_they_are_relative_to(folder):
    (folder / "deep/list.txt").write_text("c.jpg\n")
    with pytest.raises(UserError, match=r"deep/list.txt has paths relative to its own folder, such as c.jpg"):
        image_files(["@deep/list.txt"])
