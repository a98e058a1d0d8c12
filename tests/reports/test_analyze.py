"""Builds pages about detections with planted errors, reads them as HTML and opens them in Chromium."""

import gzip
import json
import pickle
import re

import numpy as np
import pytest
from reports.pages import Reader, watched_tab

from kerasdet import cli
from kerasdet.analysis import analyze_cases, compare
from kerasdet.data import shapes
from kerasdet.evaluation.cases import read_cases
from kerasdet.reports.analysis_advice import advise

PLANTED = {"classification": 1, "localisation": 1, "duplicate": 1, "background": 1, "missed": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images; `perfect.json`, their objects as detections; `faulty.json`, with one error of each kind."""
    folder = tmp_path_factory.mktemp("analyze")
    shapes.write(folder, num_images=10, seed=3, image_size=(96, 128))
    truth = json.loads((folder / "annotations.json").read_text())
    keys = ("image_id", "category_id", "bbox", "segmentation")
    perfect = [{**{key: a[key] for key in keys}, "score": 0.9} for a in truth["annotations"] if not a["iscrowd"]]
    for entry in perfect:
        entry.pop("segmentation")
    (folder / "perfect.json").write_text(json.dumps(perfect))
    images = sorted({entry["image_id"] for entry in perfect})
    firsts = [next(e for e in perfect if e["image_id"] == image) for image in images]
    faulty = [dict(entry) for entry in perfect]
    kinds = dict(zip(PLANTED, firsts, strict=False))
    other = next(c["id"] for c in truth["categories"] if c["id"] != kinds["classification"]["category_id"])
    for old, new in zip(perfect, faulty, strict=True):
        if old is kinds["classification"]:
            new["category_id"] = other
        if old is kinds["localisation"]:
            x, y, width, height = old["bbox"]
            new["bbox"] = [x, y, width, height * 0.4]
        if old is kinds["missed"]:
            new["image_id"] = None
    faulty = [entry for entry in faulty if entry["image_id"] is not None]
    faulty.append({**kinds["duplicate"], "score": 0.9})
    faulty.append({**kinds["background"], "bbox": [0, 0, 3, 3], "score": 0.9})
    (folder / "faulty.json").write_text(json.dumps(faulty))
    names = {image["id"]: image["file_name"] for image in truth["images"]}
    (folder / "planted.json").write_text(json.dumps({kind: names[e["image_id"]] for kind, e in kinds.items()}))
    return folder


@pytest.fixture(scope="module")
def made(folder):
    pytest.importorskip("vl_convert")
    words = ["analyze", str(folder / "faulty.json"), "--against", str(folder / "perfect.json")]
    words += ["--data", str(folder / "annotations.json"), "--out", str(folder / "page.html")]
    assert cli.main([*words, "--json", str(folder / "page.json")]) == 0
    return folder / "page.html"


@pytest.fixture(scope="module")
def content(made):
    return Reader(made.read_text(encoding="utf-8"))


def test_page_is_one_file_without_links_to_others(content):
    assert all(target.startswith(("data:", "#")) for target in content.targets)
    assert len(content.ids) == len(set(content.ids))
    assert {target[1:] for target in content.targets if target.startswith("#")} <= set(content.ids)


def test_planted_errors_are_counted(content, made):
    rows = {row[0]: row for row in content.tables["Kinds of errors"][1:]}
    for kind, number in PLANTED.items():
        assert int(rows[kind][2]) == number, kind
    numbers = json.loads(made.with_suffix(".json").read_text())
    assert {name: each["count"] for name, each in numbers["bbox"]["errors"].items()} == {**PLANTED, "both": 0}
    assert numbers["bbox"]["numbers"]["AP"]["value"] < 1
    assert numbers["bbox"]["against"]["broken_objects"] == 3 and numbers["bbox"]["against"]["fixed_objects"] == 0


def test_twelve_numbers_have_intervals_around_them(content):
    (_, *rows) = content.tables["COCO's numbers for boxes"]
    assert len(rows) == 12
    for _, _, value, span in rows:
        if value != "-":
            low, high = map(float, span.split(" to "))
            assert low <= float(value) <= high


def test_findings_say_what_to_do(made):
    found = json.loads(made.with_suffix(".json").read_text())["findings"]
    text = " ".join(f"{each['text']} {each['action']}" for each in found)
    assert re.search(r"AP changed by -0\.\d+ .*0 objects are fixed, 3 are broken", text)
    assert re.search(r"--score-threshold [\d.]+", text)
    assert re.search(r"cost \d\.\d+ AP50 \([\d,]+ (of them|detections?|of [\d,]+ objects?)\)", text)


def test_thresholds_can_be_pasted(content):
    text = "".join(content.texts)
    thresholds = eval(re.search(r"thresholds = (\{.*?\})", text)[1])
    assert thresholds and all(0 <= score < 0.9 for score in thresholds.values())


@pytest.fixture(params=[(1280, "light"), (390, "dark")], ids=["wide_light", "phone_dark"])
def opened(request, browser, made):
    with watched_tab(browser, made, *request.param) as tab:
        yield tab


def test_filter_shows_the_image_with_the_error(opened, folder):
    gallery = opened.locator("#images .paged")
    for kind, file in json.loads((folder / "planted.json").read_text()).items():
        button = gallery.get_by_role("button", name=re.compile(f"^{kind} "))
        button.focus()
        opened.keyboard.press("Enter")
        assert button.get_attribute("aria-pressed") == "true"
        shown = gallery.locator("img:visible").evaluate_all("images => images.map(image => image.alt)")
        (mine,) = (alt for alt in shown if alt.startswith(f"{file}: "))
        assert re.match(rf": 1 {kind}(, 1 broken)?\. Left", mine.removeprefix(file))  # one error is of one kind
        assert all(f" {kind}" in alt for alt in shown)
    gallery.get_by_role("button", name=re.compile("^all ")).click()
    assert re.match(r"1 to \d of \d+ images", gallery.get_by_role("status").text_content())


def test_nothing_is_wider_than_the_screen_and_axe_finds_no_violation(opened):
    width, screen = opened.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width <= screen
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    opened.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    result = axe.Axe().run(opened)
    assert result.response["passes"]
    assert result.violations_count == 0, result.generate_report()


def test_models_are_run_timed_and_compared_with_their_anchors_and_settings(folder, tmp_path):
    import tiny

    pytest.importorskip("vl_convert")
    model = tiny.detector(num_classes=5)
    for run, smallest in (("first", 20.0), ("second", 10.0)):
        (tmp_path / run).mkdir()
        model.save(tmp_path / run / "model.keras")
        lines = [
            "LR = 0.1",
            f"OUT_DIR = '{run}'",
            f"octave_sizes.smallest = {smallest}",
            "a.b = \\",
            "    (1,",
            "     2)",
        ]
        (tmp_path / run / "config.gin").write_text("\n".join(lines))
    first, second = (str(tmp_path / run / "model.keras") for run in ("first", "second"))
    out = tmp_path / "model.html"
    words = ["analyze", second, "--against", first, "--data", str(folder / "annotations.json"), "--out", str(out)]
    assert cli.main([*words, "--json", str(tmp_path / "model.json")]) == 0
    numbers = json.loads((tmp_path / "model.json").read_text())
    assert numbers["latency"]["median_ms"] > 0 and numbers["latency"]["images"] == 9
    page = Reader(out.read_text(encoding="utf-8"))
    assert "Speed" in "".join(page.texts)
    assert page.tables["Settings that differ"][1:] == [["octave_sizes.smallest", "20.0", "10.0"]]
    assert page.tables["Overlap with the best anchor"][0][0] == "Class"


@pytest.mark.parametrize(
    "words,message",
    [
        (["faulty.json"], "contains detections, not a model: pass the ground truth with --data"),
        (["faulty.json", "--data", "annotations.json", "--split", "all", "--images", "nowhere"], "nowhere"),
        (
            ["faulty.json", "--data", "annotations.json", "--split", "test"],
            "annotations.json has no split test; it has",
        ),
        (["faulty.json", "--data", "missing.json"], "missing.json does not exist"),
        (["annotations.json", "--data", "annotations.json"], "expected a list of detections"),
        (
            ["results.pkl", "--data", "annotations.json"],
            "results.pkl is a Python pickle; expected JSON. Write detections",
        ),
        (["found.json.gz", "--data", "annotations.json"], "is compressed with gzip; expected JSON. Unpack it"),
        (["faulty.json", "--images", "images"], "--images needs --data with a file of COCO annotations"),
        (["faulty.json", "--data", "images", "--images", "images"], "--images needs --data with a file"),
        (["x.html", "--data", "annotations.json"], "--out would overwrite x.html, the file of MODEL_OR_DETECTIONS"),
        (["faulty.json", "--data", "annotations.json", "--json", "x.html"], "--json would overwrite x.html"),
    ],
)
def test_mistakes_are_one_sentence(folder, words, message, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "results.pkl").write_bytes(pickle.dumps([{"img_id": 1}]))
    (folder / "found.json.gz").write_bytes(gzip.compress(b"[]"))
    assert cli.main(["analyze", *words, "--out", "x.html"]) == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1] and "Traceback" not in error


@pytest.mark.parametrize("change", ["no_objects", "no_detections", "only_crowds", "other_classes", "other_pixels"])
def test_findings_name_files_that_do_not_belong_together(folder, tmp_path, change, capsys):
    pytest.importorskip("vl_convert")
    truth = json.loads((folder / "annotations.json").read_text())
    found = json.loads((folder / "perfect.json").read_text())
    ids = [category["id"] for category in truth["categories"]]
    message = "has no object that counts"
    if change == "no_objects":
        truth["annotations"] = []
    if change == "only_crowds":
        for annotation in truth["annotations"]:
            annotation["iscrowd"] = 1
    if change == "no_detections":
        found, message = [], "There is no detection"
    if change == "other_classes":
        found = [{**e, "category_id": ids[(ids.index(e["category_id"]) + 1) % len(ids)]} for e in found]
        message = "fit an object of another class"
    if change == "other_pixels":
        found = [{**e, "bbox": [value / 100 for value in e["bbox"]]} for e in found]
        message = "image ids or coordinates differ"
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps(found))
    words = ["analyze", str(tmp_path / "found.json"), "--data", str(tmp_path / "truth.json")]
    assert cli.main([*words, "--out", str(tmp_path / "page.html"), "--json", str(tmp_path / "page.json")]) == 0
    assert "problem: " in (printed := capsys.readouterr().out) and message in printed
    json.loads((tmp_path / "page.json").read_text(), parse_constant=pytest.fail)


def test_names_cannot_add_markup_and_equal_names_stay_apart(folder, tmp_path):
    pytest.importorskip("vl_convert")
    truth = json.loads((folder / "annotations.json").read_text())
    names = ["</style><script>alert(1)</script>", "a\0b\ud800", 'c"d', 'c"d', f'c"d ({truth["categories"][2]["id"]})']
    for category, name in zip(truth["categories"], names, strict=True):
        category["name"] = name
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    words = ["analyze", str(folder / "faulty.json"), "--data", str(tmp_path / "truth.json")]
    assert cli.main([*words, "--out", str(tmp_path / "page.html"), "--json", str(tmp_path / "page.json")]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<script") == page.count("</style") == 1
    assert names[0] in "".join(Reader(page).texts)
    assert len(json.loads((tmp_path / "page.json").read_text())["bbox"]["classes"]) == len(names)


def test_one_image_gives_no_interval_and_no_verdict():
    box = {"image_id": 1, "category_id": 1, "bbox": [10.0, 10.0, 20.0, 20.0]}
    truth = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "height": 100, "width": 100} for n in (1, 2)],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [{**box, "id": 1}],
    }
    (now,), (before,) = (read_cases(truth, found) for found in ([{**box, "score": 0.8}], []))
    now, before = analyze_cases(now, samples=5), analyze_cases(before, samples=5)
    assert (
        now.numbers["AP"].value == pytest.approx(1)
        and np.isnan([now.numbers["AP"].low, now.class_numbers[0].high]).all()
    )
    found = advise(now, "boxes", compare(now, before))
    assert found[0].text == "The difference of AP cannot be estimated, because fewer than two images have objects."
    assert any("the confidence interval of AP is unknown, because only one of them" in each.text for each in found)


def test_weakest_class_is_named_with_the_size_of_its_objects():
    sizes = {1: 60, 2: 10}
    annotations = [
        {"id": 100 * k + n, "image_id": n, "category_id": k, "bbox": [10.0 * k, 10.0, size, size], "area": size**2}
        for k, size in sizes.items()
        for n in range(25)
    ]
    truth = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "height": 100, "width": 100} for n in range(25)],
        "categories": [{"id": 1, "name": "cell"}, {"id": 2, "name": "platelet"}],
        "annotations": annotations,
    }
    found = [{**{key: a[key] for key in ("image_id", "category_id", "bbox")}, "score": 0.9} for a in annotations[:25]]
    (cases,) = read_cases(truth, found)
    found = advise(analyze_cases(cases, samples=5), "boxes", scales=np.full(25, 0.4))
    texts = {each.section: f"{each.text} {each.action}" for each in found}
    assert texts["classes"].startswith("platelet has an AP of 0.000, the other classes 1.000 on average.")
    assert "10 px across, and 4 px after resizing; the others 60 px" in texts["classes"]


def test_threshold_is_one_that_predict_takes():
    box = {"image_id": 1, "category_id": 1, "bbox": [10.0, 10.0, 20.0, 20.0]}
    other = {**box, "bbox": [50.0, 10.0, 20.0, 20.0]}
    truth = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 100, "width": 100}],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [{**box, "id": 1}, {**other, "id": 2}],
    }
    for scores, expected in (([0.8, 0.0], 0.4), ([0.0, 0.0], None), ([0.8, -3.0], -3.5)):
        (cases,) = read_cases(truth, [{**box, "score": scores[0]}, {**other, "score": scores[1]}])
        threshold = analyze_cases(cases, samples=5).threshold
        assert (None if threshold is None else threshold.score) == expected


@pytest.mark.parametrize(
    "factor, offset, level, advises", [(1, 0, "good", True), (100, 0, "good", False), (1, 60, "advice", True)]
)
def test_threshold_is_advised_if_predict_takes_it_and_praised_if_it_is_good(factor, offset, level, advises):
    boxes = [[10.0 + 4 * k, 10.0, 8.0, 8.0] for k in range(4)]
    truth = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 100, "width": 100}],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [{"id": k, "image_id": 1, "category_id": 1, "bbox": box} for k, box in enumerate(boxes, 1)],
    }
    found = [
        {"image_id": 1, "category_id": 1, "bbox": [x, y + offset * (k > 0), w, h], "score": factor * (0.9 - 0.1 * k)}
        for k, (x, y, w, h) in enumerate(boxes)
    ]
    (cases,) = read_cases(truth, found)
    best = next(each for each in advise(analyze_cases(cases, samples=5), "boxes") if "best threshold" in each.text)
    assert (best.level, "--score-threshold" in best.action) == (level, advises)


def test_detections_on_one_image_without_annotations_are_named():
    box = {"image_id": 1, "category_id": 1, "bbox": [10.0, 10.0, 20.0, 20.0]}
    truth = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "height": 100, "width": 900} for n in (1, 2)],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [{**box, "id": 1}],
    }
    found = [{**box, "image_id": 2, "bbox": [40.0 * n, 50.0, 20.0, 20.0], "score": 0.9} for n in range(12)]
    (cases,) = read_cases(truth, [{**box, "score": 0.8}, *found])
    texts = " ".join(each.action for each in advise(analyze_cases(cases, samples=5), "boxes"))
    assert "the worst has 12 of 12 above the best threshold" in texts


def texts_of(categories, annotations, found):
    truth = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "height": 64, "width": 64} for n in (1, 2)],
        "categories": [{"id": k, "name": f"cell {k}"} for k in categories],
        "annotations": [{**annotation, "id": k} for k, annotation in enumerate(annotations, 1)],
    }
    (cases,) = read_cases(truth, [{**each, "score": each.get("score", 0.9)} for each in found])
    return " ".join(f"{each.text} {each.action}" for each in advise(analyze_cases(cases, samples=5), "boxes"))


def squares(image, number, classes=(1,)):
    return [
        {"image_id": image, "category_id": classes[k % len(classes)], "bbox": [4.0 * (k % 16), k // 16 * 4.0, 3.0, 3.0]}
        for k in range(number)
    ]


def test_objects_beyond_cocos_limit_are_not_blamed_on_the_model():
    objects = [*squares(1, 150), *squares(2, 20)]
    text = texts_of([1], objects, objects)
    assert "1 image has more than 100 objects of a class. COCO's rules count the best 100 detections of a class" in text
    assert "AP counts 50 of 170 objects as missed, whatever the model detects. This is not an error of the mod" in text
    assert "Objects without any detection" not in text and "use larger images" not in text

    text = texts_of([1], objects, objects[:150])
    assert "(70 of 170 objects, 50 by the limit of 100 detections)" in text

    several = squares(1, 150, classes=(1, 2))
    text = texts_of([1, 2], several, several)
    assert "AP counts the best 100 detections of each class, but the kinds of errors, like TIDE, those of an" in text
    assert "there 50 of 150 objects count as missed" in text and "Objects without any detection" not in text

    crowded = squares(1, 250)
    assert "coordinates differ" not in texts_of([1], crowded * 12, crowded[:100])
    assert "more than 100 objects" not in texts_of([1], objects[50:], objects[50:])


def test_repeated_rows_are_named_and_not_blamed_on_nms():
    objects = squares(1, 20)
    found = [*objects[:8], *({**each, "score": 0.7} for each in objects[8:])]
    text = texts_of([1], objects, [*found, *objects[:8]])
    assert "8 detections equal an earlier one in image, class, score and geometry. Remove the repeated rows" in text
    assert "nms_threshold" not in text

    text = texts_of([1], objects, [*found, *({**each, "score": 0.8} for each in objects[:8])])
    assert "nms_threshold" in text and "equal an earlier one" not in text


def test_without_images_the_page_has_no_pictures(folder, tmp_path, capsys):
    pytest.importorskip("vl_convert")
    truth = tmp_path / "annotations.json"
    truth.write_text((folder / "annotations.json").read_text())
    out = tmp_path / "page.html"
    assert cli.main(["analyze", str(folder / "faulty.json"), "--data", str(truth), "--out", str(out)]) == 0
    assert "The page will have no pictures" in capsys.readouterr().out
    assert 'id="images"' not in out.read_text(encoding="utf-8")
