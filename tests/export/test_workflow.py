"""Tests the whole export: options, comparison, AP, and the files after a failure."""

import contextlib
import dataclasses
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tiny

import kerasdet
from kerasdet import cli
from kerasdet.errors import UserError, VerificationError
from kerasdet.export import export_and_verify, export_saved_model, export_tflite, formats, verify_export, workflow
from kerasdet.export.protocol import Format, WorkerRun, run_worker
from kerasdet.export.spec import CALIBRATION_IMAGES, FormatSpec, Option
from kerasdet.inference import KeepSize, Predictor
from kerasdet.models.postprocess import Postprocessing

pytestmark = pytest.mark.usefixtures("unoptimized_graphs")
SIZE = {"format": "tflite", "size": (64, 64)}


class Recorded(Predictor):
    """Answers with the detections that a file holds; the predictor of the `toy` format."""

    preprocessing = KeepSize()
    num_classes = 5

    def __init__(self, path):
        self.path = path
        self.metadata = {"precision": path.read_text()}


def make_toy(change=lambda detections: detections, precisions=("float32", "int8")):
    """Makes a format that writes its precision to a file and answers with the model's own detections, changed."""

    def write(model, path, *, precision, gin_config, calibration_images=()):
        if path.exists():
            raise FileExistsError(f"{path} exists: export to another file or delete it.")
        assert len(calibration_images) <= 100
        path.write_text(precision)
        return path

    def run_in_worker(model, path, images):
        batch = model.preprocessing.batch(images)
        found = {name: value.numpy() for name, value in model.detect_batch(batch).items()}
        return WorkerRun([(batch, change(found))], [0.001])

    return Format(
        spec=FormatSpec("toy", ".toy", precisions, lambda path: path.suffix == ".toy", (CALIBRATION_IMAGES,)),
        runtime="toys",
        write=write,
        load=Recorded,
        read_metadata=lambda path: {"precision": path.read_text()},
        run_in_worker=run_in_worker,
    )


@contextlib.contextmanager
def new_version(folder):
    """Adds version 1 to a folder, for a server of toys."""
    (folder / "partial").mkdir(parents=True)
    yield folder / "partial" / "x.toy", folder / "1.toy"
    (folder / "partial" / "x.toy").rename(folder / "1.toy")


@pytest.fixture
def toy(monkeypatch):
    """Returns a function that adds a toy format: the modules of its folder, and its name in the list of formats."""

    def add(*arguments):
        toy = dataclasses.replace(make_toy(*arguments), new_version=new_version)
        monkeypatch.setitem(sys.modules, "kerasdet.export.toy.spec", SimpleNamespace(SPEC=toy.spec))
        monkeypatch.setitem(sys.modules, "kerasdet.export.toy.format", SimpleNamespace(FORMAT=toy))
        monkeypatch.setattr(formats, "FORMATS", (*formats.FORMATS, "toy"))

    return add


def test_new_format_is_written_verified_and_loaded(toy, models, tmp_path):
    toy()
    path, report = export_and_verify(models("tiny"), tmp_path / "x.toy", format="toy", verify_images=tiny.images())
    assert re.search(r"Run by toys alone: \d\d detections compared, 0 found by one side only", report)
    assert isinstance(kerasdet.load(path), Recorded)
    assert verify_export(models("tiny"), path, tiny.images()).one_sided == 0


def test_calibration_images_are_the_default_verify_images(toy, models, tmp_path, caplog):
    toy()
    image = tiny.images()[0]
    arguments = {"format": "toy", "precision": "int8"}
    with caplog.at_level("INFO"):
        export_and_verify(models("tiny"), tmp_path / "a.toy", **arguments, calibration_images=[image] * 9)
        export_and_verify(
            models("tiny"), tmp_path / "b.toy", **arguments, calibration_images=[image] * 9, verify_images=[image]
        )
    counts = [re.search(r"\d+ images?", message)[0] for message in caplog.messages if message.startswith("Comparing")]
    assert counts == ["4 images", "1 image"]


def test_of_many_calibration_images_a_hundred_are_used(toy, models, tmp_path, caplog):
    toy()
    images = [np.full_like(tiny.images()[0], i) for i in range(205)]
    with caplog.at_level("INFO"):
        export_and_verify(models("tiny"), tmp_path / "a.toy", format="toy", precision="int8", calibration_images=images)
    assert "Calibrating on 100 of the 205 images, evenly spaced in the list." in caplog.messages


def test_default_verify_images_have_two_sizes():
    first, second = workflow.sample_images()
    assert first.shape == (480, 640, 3)
    assert second.shape == (500, 333, 3)
    assert min(first.std(), second.std()) > 10


def test_model_without_detections_is_compared_below_its_threshold(toy, tmp_path, monkeypatch):
    toy()
    model = tiny.talkative(score_threshold=0.99999)
    detect = type(model).detect
    monkeypatch.setattr(type(model), "detect", lambda self, image: detect(self, image)[: 100 * bool(image.any())])
    images = [np.zeros((64, 64, 3), np.uint8), *tiny.images()]  # nothing is found in the first one
    _, report = export_and_verify(model, tmp_path / "x.toy", format="toy", verify_images=images)
    lines = report.splitlines()
    assert "Run by toys alone: 0 detections compared" in lines[1]
    found = re.match(r"The model finds nothing .* With a score threshold of 0\.\d+: (\d+) detections", lines[2])
    assert int(found[1]) >= 20
    assert model.postprocessing.score_threshold == 0.99999
    assert [path.name for path in tmp_path.iterdir()] == ["x.toy"]


def test_export_whose_input_is_too_small_for_objects_raises(toy, tmp_path, monkeypatch):
    """Otherwise `--size 1 1` would pass without a comparison."""
    toy()

    def run_in_worker(model, path, images):
        batch = model.preprocessing.batch([np.zeros((1, 1, 3), np.uint8)], resize=False)
        return WorkerRun([(batch, {k: v.numpy() for k, v in model.detect_batch(batch).items()})], [0.001])

    tiny_input = dataclasses.replace(formats.format_named("toy"), run_in_worker=run_in_worker)
    monkeypatch.setitem(sys.modules, "kerasdet.export.toy.format", SimpleNamespace(FORMAT=tiny_input))
    model = tiny.talkative(postprocessing=Postprocessing(0.99999, max_detections=20, min_size=2.0))
    with pytest.raises(VerificationError, match=r"detects nothing at the input size of .*larger --size"):
        export_and_verify(model, tmp_path / "x.toy", format="toy", verify_images=tiny.images())
    assert not list(tmp_path.iterdir())


def test_model_without_detections_at_any_score_raises(toy, tmp_path):
    toy()
    model = tiny.talkative(score_threshold=0.99999)
    for variable in model.variables:
        if variable.name == "kernel":
            variable.assign(np.full(variable.shape, np.nan))
    with pytest.raises(VerificationError, match="finds nothing on the verification images at any score"):
        export_and_verify(model, tmp_path / "x.toy", format="toy", verify_images=tiny.images())
    assert not list(tmp_path.iterdir())


def shifted(detections):
    return {**detections, "boxes": detections["boxes"] + np.float32([2, 0, 2, 0])}


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_differing_export_raises_and_is_removed(toy, models, tmp_path, precision):
    toy(shifted)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(VerificationError, match=r"x\.toy differs from the model in box"):
        export_and_verify(
            models("tiny"), tmp_path / "x.toy", format="toy", precision=precision, verify_images=tiny.images()
        )
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_messages_about_a_served_version_name_its_final_path(toy, models, tmp_path, caplog):
    toy(shifted)
    folder = tmp_path / "served.toy"
    version = folder / "1.toy"
    with caplog.at_level("INFO"), pytest.raises(VerificationError, match=f"^{version} differs from the model in box"):
        export_and_verify(models("tiny"), folder, format="toy", serving=True, verify_images=tiny.images())
    assert f"Writing {version} ..." in caplog.messages


def test_failed_export_keeps_existing_files(models, tmp_path, caplog):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        export_and_verify(models("tiny"), tmp_path, verify_images=tiny.images())
    assert (tmp_path / "notes.txt").read_text() == "mine"
    (tmp_path / "x.tflite").write_text("mine")
    with caplog.at_level("INFO"), pytest.raises(FileExistsError, match="exists"):
        export_and_verify(models("tiny"), tmp_path / "x.tflite", verify_images=tiny.images(), **SIZE)
    assert "The export resizes images to fit into 64 x 64 (height x width) and fills the rest. The mod" in caplog.text
    assert (tmp_path / "x.tflite").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "coreml"}, "export format is 'coreml': choose one of saved_model, onnx, openvino, tflite"),
        (
            {"format": "saved_model", "precision": "int8"},
            "saved_model has no precision 'int8': choose one of float32, bfloat16, float16",
        ),
        ({"format": "tflite", "ops": "compiled"}, "tflite has no option 'ops': its options are postprocessing, size"),
        (
            {"format": "tflite", "serving": True},
            "Format tflite has no folder layout of a model server: remove --serving",
        ),
        ({"format": "saved_model", "calibration_images": ["a.jpg"]}, "saved_model does not use calibration images"),
        ({**SIZE, "calibration_images": tiny.images()}, "Calibration images are for precision int8"),
        ({**SIZE, "precision": "int8"}, "int8 needs calibration images"),
    ],
)
def test_unsupported_option_raises_before_conversion(models, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        path = tmp_path / ("x" if options.get("format") == "saved_model" else "x.tflite")
        export_and_verify(models("tiny"), path, verify_images=tiny.images()[:1], **options)
    assert not list(tmp_path.iterdir())


class Metrics(SimpleNamespace):
    def table(self):
        return f"AP {self.summary['AP']}"


@pytest.mark.parametrize(
    ("export_ap", "fits"), [(0.5, True), (0.51, True), (0.485, True), (0.47, False), (float("nan"), False)]
)
def test_export_with_large_ap_drop_raises(toy, models, tmp_path, monkeypatch, export_ap, fits):
    toy()

    def evaluate(predictor, data):
        ap = export_ap if isinstance(predictor, Recorded) else 0.5
        return Metrics(summary={"AP": ap, "AP50": 0.1 * ap, "segm/AP": float("nan")})

    monkeypatch.setattr(workflow, "evaluate", evaluate)
    arguments = models("tiny"), tmp_path / "x.toy"
    options = {"format": "toy", "precision": "int8", "verify_images": tiny.images()}
    data = SimpleNamespace(annotations="val.json")
    if fits:
        _, report = export_and_verify(*arguments, eval_data=data, **options)
        assert f"The export (AP {export_ap - 0.5:+.3f})" in report
        assert "AP was not measured" not in report
    else:
        with pytest.raises(
            VerificationError, match=r"x\.toy reaches AP .* on val\.json, the model 0\.500: the export loses more"
        ):
            export_and_verify(*arguments, eval_data=data, **options)
        assert not list(tmp_path.iterdir())
        if export_ap == 0.47:
            export_and_verify(*arguments, eval_data=data, max_ap_drop=0.05, **options)


def test_8_bit_report_states_that_ap_was_not_measured(toy, models, tmp_path):
    toy()
    options = {"format": "toy", "verify_images": tiny.images()}
    _, report = export_and_verify(models("tiny"), tmp_path / "a.toy", precision="int8", **options)
    assert "AP was not measured: pass --eval DATA" in report
    _, report = export_and_verify(models("tiny"), tmp_path / "b.toy", precision="float32", **options)
    assert "AP was not measured" not in report


def test_invalid_file_raises_one_line(models, tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"")
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "kerasdet.json").write_text('{"ops": "tensorflow", "class_offset": 1, "num_classes": 5}')
    with pytest.raises(VerificationError, match="does not run in a new process: ") as error:
        verify_export(models("tiny"), tmp_path, tiny.images()[:1])
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="is not an export"):
        verify_export(models("tiny"), tmp_path / "assets", tiny.images()[:1])


@pytest.mark.parametrize("export", [export_and_verify, export_saved_model, export_tflite])
def test_backbone_raises(tmp_path, export):
    with pytest.raises(TypeError, match="model is of type PlainBackbone: expected a kerasdet detector"):
        export(tiny.PlainBackbone(), tmp_path / ("new.tflite" if export is export_tflite else "new"))
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("metadata", [{}, {"precision": "fp32"}])
def test_unknown_precision_in_metadata_names_the_format(toy, models, tmp_path, monkeypatch, metadata):
    toy()
    unfinished = dataclasses.replace(formats.format_named("toy"), read_metadata=lambda path: metadata)
    monkeypatch.setattr(sys.modules["kerasdet.export.toy.format"], "FORMAT", unfinished)
    message = f"precision {metadata.get('precision')!r}, .* expected one of float32, int8. Let `write` of format toy"
    with pytest.raises(VerificationError, match=message):
        export_and_verify(models("tiny"), tmp_path / "x.toy", format="toy", verify_images=tiny.images())


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        ("import kerasdet_missing", "No module named 'kerasdet_missing'. Install the missing package for "),
        ("import kerasdet.absent", "remove the imports of kerasdet"),
        (
            "raise RuntimeError('running the file imported TensorFlow or kerasdet; expected toys alone')",
            "expected toys alone. Remove the code that imports them from ",
        ),
        ("1 / 0", "ZeroDivisionError: division by zero. Compare the installed packages with "),
        ("raise ValueError('Function f is not defined. .')", "not defined. Compare the installed packages with "),
        ("raise KeyError('Kerasdet>Nms')", "KeyError: 'Kerasdet>Nms'. Make the graph with `InferenceGraph`, or inside"),
        ("pass", "worker.py wrote no outputs.npz: expected the outputs of "),
    ],
)
def test_failed_worker_says_what_to_do(tmp_path, code, remedy):
    (tmp_path / "worker.py").write_text(code)
    with pytest.raises(VerificationError, match=re.escape(remedy)):
        run_worker(tmp_path / "worker.py", tmp_path / "x.toy", str(tmp_path))


def test_copy_with_another_threshold_equals_the_model(models):
    model = models("tiny")
    copy = workflow.with_score_threshold(model, 0.9)
    image = tiny.images()[0]
    ours, theirs = model.detect(image), copy.detect(image)
    assert copy.postprocessing.score_threshold == 0.9
    assert 0 < len(theirs) < len(ours)
    np.testing.assert_allclose(theirs.boxes[0], ours.boxes[0], atol=1e-4)
    assert workflow.with_score_threshold(tiny.rcnn(), 0.3).postprocessing.score_threshold == 0.3


@pytest.mark.parametrize(("cases", "seconds"), [([], [0.1]), ([({}, {})], [])])
def test_worker_run_without_cases_or_seconds_raises(cases, seconds):
    with pytest.raises(VerificationError, match=f"has {len(cases)} cases and {len(seconds)} seconds: .*run_in_worker"):
        WorkerRun(cases, seconds)


@pytest.mark.parametrize("protocol", [Format, FormatSpec, Option])
def test_every_protocol_field_is_documented(protocol):
    for field in dataclasses.fields(protocol):
        assert f"        {field.name}: " in protocol.__doc__


def test_new_format_works_on_the_command_line(toy, models, tmp_path, capsys):
    toy()
    models("tiny").save(tmp_path / "model.keras")
    source = str(tmp_path / "model.keras")
    assert cli.main(["export", source, str(tmp_path / "x"), "--format", "toy"]) == 2
    assert "Format toy writes a file, but " in capsys.readouterr().err
    assert cli.main(["export", source, str(tmp_path / "x.toy"), "--format", "saved_model"]) == 2
    assert "x.toy ends in .toy: change the path, or choose format toy." in capsys.readouterr().err
    assert cli.main(["export", source, str(tmp_path / "x.toy")]) == 0
    assert "Run by toys alone" in capsys.readouterr().out
