"""Tests the pages that scripts write, against the code that they describe."""

import importlib.util
import inspect
import re

import doc_blocks
import numpy as np
import pytest
from conftest import shared

from kerasdet import config, training
from kerasdet.checkpoints.zoo import ZOO


def generator(name):
    spec = importlib.util.spec_from_file_location(f"generate_{name}", doc_blocks.ROOT / "docs/generate" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("item", config.SURFACE, ids=lambda item: item.__name__)
def test_every_key_has_a_default_and_a_description(item):
    rows = list(generator("settings").describe_arguments(item))
    assert [row[0] for row in rows] == config.ARGUMENTS[item.__name__]
    assert [name for name, _, default, text in rows if not (default and text)] == []


def test_defaults_and_types_are_those_of_the_signature():
    rows = {row[0]: row for row in generator("settings").describe_arguments(training.Validation)}
    assert rows["data"][1:3] == ("Any", "required")
    assert rows["patience"][1:] == (
        "int | None",
        "`None`",
        "Number of consecutive evaluations without improvement of `monitor` after which training stops. None: training "
        "never stops early.",
    )
    assert inspect.signature(training.Validation).parameters["every"].default == 1


def test_descriptions_end_where_the_next_section_begins():
    docstring = "Does.\n\nArgs:\n    a: One\n        and more.\n    b, c: Two.\n\nReturns:\n    d: no argument."
    assert generator("settings").argument_descriptions(docstring) == {"a": "One and more.", "b": "Two.", "c": "Two."}


def test_zoo_lists_every_name():
    table = generator("weights").zoo()
    assert re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE) == sorted(ZOO, key=lambda name: list(ZOO).index(name))


def test_parity_says_whose_outputs_are_compared():
    parity = generator("parity")
    folders = [shared(f"reference/{name}") for name in ("models", "mmdet", "rtmdet")]
    compared = {path.stem.replace("_", "/", 1) for folder in folders for path in folder.glob("*.npz")}
    with np.load(doc_blocks.ROOT / "tests/checkpoints/data/torchvision_mobile.npz") as file:
        compared |= {f"torchvision/{name.partition('/')[0]}" for name in file.files}
    assert set(parity.tested()) == compared


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("detectron2/mask_rcnn_R_50_FPN", "yes"),
        ("torchvision/ssd300_vgg16", "yes"),
        ("mmdet/retinanet_r101_caffe_fpn", "as `retinanet_r50_caffe_fpn`"),
        ("mmdet/rtmdet_x", "as `rtmdet_m`"),  # with the activation of distances of m, not of s
        ("torchvision/fasterrcnn_resnet50_fpn_v2", "as `maskrcnn_resnet50_fpn_v2` without its masks"),
        ("mmdet/faster_rcnn_r50_caffe_fpn", "no"),  # matches otherwise than mask_rcnn_r50_caffe_fpn
        ("detectron2/MSRA_R-50", "features"),
        ("mmdet/cspnext-l", "as `cspnext-tiny`"),
    ],
)
def test_parity_of_a_source(source, says):
    assert generator("parity").parity(source) == says


def test_recommended_models_have_the_numbers_of_the_zoo():
    page = (doc_blocks.ROOT / "docs/zoo.md").read_text()
    rows = re.findall(r"^\| [^|]+ \| `([^`]+)` \| ([\d.]+) \| ([\d.]*) ?\| (\d+) \|", page, re.MULTILINE)
    assert len(rows) == 7
    for name, box, branch, megabytes in rows:
        weights = ZOO[name]
        assert (float(box), int(megabytes)) == (weights.box_ap, weights.megabytes)
        assert (float(branch) if branch else None) == weights.branch_ap
    r50 = [
        weights.box_ap for name, weights in ZOO.items() if "50" in name and weights.box_ap and "keypoint" not in name
    ]
    below = sum(ap < ZOO["mmdet/rtmdet_tiny"].box_ap for ap in r50)
    assert f"exceeds that of {below} of the {len(r50)} published R50" in page


def test_latencies_of_recommended_models_are_those_of_the_results():
    table = generator("measurements").latency().splitlines()
    column = table[0].split(" | ").index("RTMDet-tiny, 320")
    measured = {row.split("|")[1].strip(): int(row.split("|")[column + 1]) for row in table[2:9]}
    page = (doc_blocks.ROOT / "docs/zoo.md").read_text()
    lite = re.search(r"TFLite at 320x320: (\d+) ms in float32, (\d+) ms in int8 \(a\)", page)
    assert [int(number) for number in lite.groups()] == [measured["TFLite float32"], measured["TFLite int8"]]
    cpu = re.search(r"(\d+) ms in OpenVINO int8, (\d+) ms in ONNX Runtime float32 \(a\)", page)
    assert [int(number) for number in cpu.groups()] == [measured["OpenVINO int8"], measured["ONNX Runtime float32"]]


def test_marks_say_in_the_markdown_file_where_the_contents_are():
    marks = [
        (page.name, below)
        for page in doc_blocks.PAGES
        for below in re.findall(r"^<!-- (?:generated|results): \w+ -->\n(.*)$", page.read_text(), re.MULTILINE)
    ]
    assert len(marks) == 9
    assert [name for name, below in marks if "`make docs`" not in below] == []


def test_measurements_become_tables(tmp_path, monkeypatch):
    measurements = generator("measurements")
    monkeypatch.setattr(measurements, "RESULTS", tmp_path)
    assert "no measurements" in measurements.benchmarks()
    (tmp_path / "ops_epyc.json").write_text(
        '{"cpu": "EPYC", "rows": [{"op": "nms", "peak_ms": 1.23456}, {"op": "roi_align"}]}'
    )
    title, origin, facts, table = measurements.benchmarks().split("\n\n")
    assert title == "### Operations on CPUs (EPYC)"
    assert "`python benchmarks/ops.py --peer-python PYTHON_WITH_TORCHVISION --json ops_epyc.json`" in origin
    assert facts == "- cpu: `EPYC`"
    assert table == "| op | peak ms |\n|---|---|\n| nms | 1.235 |\n| roi_align |  |"
    (tmp_path / "ops_epyc.json").write_text('{"command": "python benchmarks/ops.py --rounds 9"}')
    assert "(`python benchmarks/ops.py --rounds 9 --json ops_epyc.json`;" in measurements.benchmarks()
    (tmp_path / "opsx.json").write_text("[]")
    with pytest.raises(ValueError, match=r"opsx\.json has the name of no script"):
        measurements.benchmarks()


def test_results_come_from_scripts_that_write_json():
    measurements = generator("measurements")
    for path in measurements.RESULTS.glob("*.json"):
        script = re.search(r"benchmarks/(\w+\.py)", measurements.origin(path))[1]
        assert '"--json"' in (measurements.SCRIPTS / script).read_text()


def test_tutorial_becomes_a_notebook_with_outputs():
    source = (
        "# Title\n\nText.\n\n<!-- tiny: 9 -> 1 -->\n```bash\nkerasdet eval --n 9\n```\n"
        "\n<!-- output -->\n```text\nAP 0.5\n```\n\nMore.\n"
        "\n<!-- check: needs Docker -->\n```bash\ndocker up\n```\n\n```python\nprint(1)\n```\n"
    )
    notebook = generator("notebooks").notebook(doc_blocks.ROOT / "docs/tutorials/finetune.md", source)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert [(cell["cell_type"], cell["source"]) for cell in notebook["cells"]] == [
        ("markdown", "# Title\n\nText."),
        ("code", "%%bash\nkerasdet eval --n 9"),
        ("markdown", "More.\n\n```bash\ndocker up\n```"),
        ("code", "print(1)"),
    ]
    assert notebook["cells"][1]["outputs"] == [{"output_type": "stream", "name": "stdout", "text": "AP 0.5\n"}]
    assert [cell.get("execution_count") for cell in notebook["cells"]] == [None, 1, None, 2]
    assert len({cell["id"] for cell in notebook["cells"]}) == 4


def test_comment_belongs_to_the_block_below_it():
    source = "<!-- generated: zoo -->\nHere.\n\n<!-- check: slow -->\n```python\nx = 1\n```\n\n```bash\nls\n```\n"
    blocks = generator("code_blocks").read_blocks(doc_blocks.ROOT / "README.md", source)
    assert [(block.kind, block.text) for block in blocks] == [("check", "slow"), (None, "")]


def test_recorded_outputs_replace_old_ones(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(
        "# A\n\n```python\nx = 2\nprint(x)\n```\n\n<!-- output -->\n```text\nold\n```\n"
        "\n```bash\necho no output shown\n```\n"
    )
    monkeypatch.chdir(tmp_path)
    generator("record").record(page)
    assert page.read_text() == (
        "# A\n\n```python\nx = 2\nprint(x)\n```\n\n<!-- output -->\n```text\n2\n```\n"
        "\n```bash\necho no output shown\n```\n"
    )


def test_recorded_outputs_are_shortened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shorten = generator("record").shorten
    assert shorten(f"10%\r100%\n2026-11-27 12:00:00 tensorflow says\n{tmp_path}/a.jpg  \n") == "100%\na.jpg\n"
    lines = shorten("".join(f"{number}\n" for number in range(40))).split()
    assert lines[:5] == ["0", "1", "2", "3", "..."]
    assert lines[5:] == [str(number) for number in range(28, 40)]
