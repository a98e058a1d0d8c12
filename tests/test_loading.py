import re

import keras
import numpy as np
import pytest
import tiny

import kerasdet
from kerasdet.errors import UserError
from kerasdet.layers import RetinaNetHead
from kerasdet.loading import backbone_weights, load, load_detector, pretrained
from kerasdet.models.common import LossNormalizer

pytestmark = pytest.mark.usefixtures("unoptimized_graphs")


@pytest.fixture(scope="module")
def model():
    return tiny.talkative(score_threshold=0.008, normalizer=LossNormalizer("batch"), head=RetinaNetHead(2))


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("converted") / "model.keras"
    model.save(path)
    return path


@pytest.fixture
def run_dir(tmp_path, model):
    """Makes a training run: two checkpoints, and the partial file of an interrupted save."""
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    tiny.detector(seed=5).save(folder / "step_00000099.keras")
    model.save(folder / "step_00000100.keras")
    (folder / ".partial_step_00000101.keras").write_bytes(b"PK")
    return folder.parent


def same_weights(a, b):
    return all(np.array_equal(x, y) for x, y in zip(tiny.weights(a), tiny.weights(b), strict=True))


def head_kernel(model):
    (kernel,) = [v for v in model.variables if v.path.endswith("class_logits/conv/kernel")]
    return np.array(kernel)


@pytest.mark.parametrize("as_text", [False, True])
def test_load_opens_files_converted_folders_and_runs(file, run_dir, model, as_text):
    for path in (file, file.parent, run_dir):
        loaded = load(str(path) if as_text else path)
        assert same_weights(loaded, model)
        assert loaded.postprocessing.score_threshold == 0.008
        assert tuple(loaded.class_names) == tiny.CLASS_NAMES


def test_loaded_model_gives_the_same_detections(file, model):
    for ours, theirs in zip(model.detect(tiny.images()), kerasdet.load(file).detect(tiny.images()), strict=True):
        assert len(ours) > 5
        for name in ("boxes", "scores", "class_ids"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def test_missing_model_raises_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent does not exist: "):
        load(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"contains no model: .*OUT_DIR"):
        load(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".partial_step_00000001.keras").write_bytes(b"PK")
    with pytest.raises(FileNotFoundError, match="contains no model"):
        load(tmp_path)


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.999])
def test_truncated_checkpoint_raises_and_is_named(run_dir, keep):
    newest = run_dir / "checkpoints" / "step_00000100.keras"
    content = newest.read_bytes()
    newest.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    problem = "is not a valid .keras file" if keep else "is empty (0 bytes)"
    with pytest.raises(ValueError, match=re.escape(f"{newest} {problem}")):
        load(run_dir)


def test_damaged_file_raises_and_is_named(tmp_path, file):
    content = file.read_bytes()
    middle = len(content) // 2
    damaged = tmp_path / "damaged.keras"
    damaged.write_bytes(content[:middle] + bytes(500) + content[middle + 500 :])
    with pytest.raises(ValueError, match=r"damaged\.keras cannot be loaded: .*model\.weights\.h5.* copy it again"):
        load(damaged)
    for name, content, message in (
        ("a.keras", b"", r"a\.keras is empty \(0 bytes\)"),
        ("a.pth", b"", r"a\.pth is empty \(0 bytes\)"),
        (
            "a.pth",
            b"<!doctype html>",
            r"a\.pth is neither a \.keras file nor a checkpoint that `kerasdet",
        ),
        ("a.pkl", b"\x80\x04}q\x00.", r"a\.pkl is a checkpoint of another framework.* `kerasdet convert`"),
        (
            "a.h5",
            b"\x89HDF",
            r"a\.h5 is an HDF5 file, which kerasdet does not load: .* Save the model as a \.keras file",
        ),
        ("a.lite", b"\x20\0\0\0TFL3", r"a\.lite is a TFLite file without its suffix: .* Rename it to end in \.tflite"),
        (
            "a.tflite",
            b"\x20\0\0\0TFL3",
            r"a\.tflite has no kerasdet\.json at its end: .* it is truncated: copy it again",
        ),
        (
            "det.xml",
            b"<net/>",
            r"det\.xml is not a model: .* the names model\.xml and model\.bin again, and pass their",
        ),
        ("ckpt-1.index", b"\0\0", r"ckpt-1\.index is a part of a TensorFlow checkpoint"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            load(tmp_path / name)
    damaged.write_text("not a model")
    with pytest.raises(ValueError, match=r"damaged\.keras is not a valid \.keras file"):
        load(damaged)


def test_part_of_an_export_and_folder_of_versions_raise(tmp_path):
    version = tmp_path / "served" / "1"
    version.mkdir(parents=True)
    for name in ("model.xml", "model.bin"):
        (version / name).write_text("")
        with pytest.raises(UserError, match=rf"{name} is a part of an export: pass its folder, .*/served/1\."):
            load(version / name)
    with pytest.raises(FileNotFoundError, match=r"contains no model: .* Did you mean .*/served/1\?"):
        load(version.parent)
    (version / "other.keras").write_text("none")
    with pytest.raises(UserError, match=r"other\.keras is not a valid \.keras file"):
        load(version / "other.keras")
    for name in ("model.xml", "model.bin"):
        (version / name).rename(version / name.replace("model", "det"))
    with pytest.raises(FileNotFoundError, match=r"If .*/det\.xml is an OpenVINO export, name its two files model\.xml"):
        load(version)


def test_weights_that_are_not_finite_raise(tmp_path):
    model = tiny.PlainBackbone()
    model.weights[0].assign(np.full(model.weights[0].shape, np.nan))
    model.save(tmp_path / "diverged.keras")
    with pytest.raises(UserError, match=r"diverged\.keras: the weight .*conv0.* has values that are NaN or infinite"):
        load(tmp_path / "diverged.keras")


def test_unknown_class_raises_one_line(tmp_path):
    class Homemade(keras.Model):
        pass

    model = Homemade()
    model.built = True
    model.save(tmp_path / "homemade.keras")
    with pytest.raises(
        ValueError, match=r"homemade\.keras cannot be loaded: Could not locate class 'Homemade'"
    ) as error:
        load(tmp_path / "homemade.keras")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_load_detector_of_a_backbone_raises(tmp_path):
    tiny.backbone().save(tmp_path / "model.keras")
    assert load(tmp_path).width == 8
    with pytest.raises(ValueError, match="contains a ResNet, not a detector"):
        load_detector(tmp_path)


def test_pretrained_with_the_same_number_of_classes_keeps_the_model(file, model):
    tuned = pretrained(file, 5)
    assert same_weights(tuned, model)
    assert tuple(tuned.class_names) == tiny.CLASS_NAMES


def test_pretrained_with_other_classes_re_initialises_only_the_class_layer(file, model):
    tuned = pretrained(file, 3)
    assert tuned.num_classes == 3
    assert tuned.class_names is None
    changed = []
    for new, old in zip(tuned.variables, model.variables, strict=True):
        if new.shape != old.shape or not np.array_equal(new, old):
            changed.append(new.path.split("/")[-3:])
    assert changed == [["class_logits", "conv", "kernel"], ["class_logits", "conv", "bias"]]
    assert np.std(head_kernel(tuned)) == pytest.approx(0.01, rel=0.2)  # RetinaNet's initial standard deviation
    (bias,) = [v for v in tuned.variables if v.path.endswith("class_logits/conv/bias")]
    np.testing.assert_allclose(bias, np.log(0.01 / 0.99), rtol=1e-5)
    assert (tuned.postprocessing.score_threshold, tuned.normalizer.method, tuned.head.num_convs) == (0.008, "batch", 2)
    assert tuned.preprocessing.longest == 96


@pytest.mark.parametrize("num_classes", [5, 3])
def test_pretrained_with_other_edges_keeps_the_rest_of_the_resize_rule(file, model, num_classes):
    tuned = pretrained(file, num_classes, shortest=48)
    expected = {**model.preprocessing.get_config(), "shortest": 48}
    assert tuned.preprocessing.get_config() == expected != model.preprocessing.get_config()
    tuned = pretrained(file, num_classes, shortest=48, longest=72)
    assert tuned.preprocessing.get_config() == {**expected, "longest": 72}
    np.testing.assert_array_equal(tuned.backbone.variables[0], model.backbone.variables[0])


def test_pretrained_rcnn_with_other_classes_re_initialises_its_branches(tmp_path):
    model = tiny.rcnn()
    model.save(tmp_path / "model.keras")
    tuned = pretrained(tmp_path / "model.keras", 2)
    logits = tuned({"image": np.zeros((1, 64, 64, 3), np.uint8), "image_size": np.int32([[64, 64]])})["class_logits"]
    assert (tuned.num_classes, logits.shape[-1]) == (2, 3)
    changed = {
        new.path.split("/")[-2 if new.path.split("/")[-2] != "conv" else -3]
        for new, old in zip(tuned.variables, model.variables, strict=True)
        if new.shape != old.shape or not np.array_equal(new, old)
    }
    assert changed == {"class_logits", "box_deltas", "mask_logits"}
    assert tuned.detect(tiny.images()[0]).mask_probs.shape[1:] == (28, 28)


def test_pretrained_proposal_network_raises(tmp_path):
    part = tiny.rcnn()
    kerasdet.ProposalNetwork(backbone=part.backbone, neck=part.neck, rpn=part.rpn).save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match=r"contains a ProposalNetwork, which .* classes"):
        pretrained(tmp_path / "model.keras", 2)


def test_deformable_backbone_loads_kernels_of_ordinary_convolutions(tmp_path):
    source = tiny.backbone()
    source.save(tmp_path / "model.keras")
    receiver = tiny.detector(backbone=tiny.backbone(deform_stages=("c4", "c5")))
    backbone_weights(receiver, tmp_path / "model.keras")
    image = np.float32(np.random.default_rng(0).normal(size=(1, 64, 64, 3)))
    for name, value in source(image).items():  # Without offsets, a deformable convolution equals the ordinary one.
        np.testing.assert_allclose(receiver.backbone(image)[name], value, atol=1e-4)


@pytest.mark.parametrize("of", ["backbone", "detector"])
def test_backbone_weights_load_from_backbone_or_detector(tmp_path, model, of):
    path = tmp_path / "model.keras"
    (model.backbone if of == "backbone" else model).save(path)
    receiver = tiny.detector(num_classes=2, seed=3)
    rest = [np.array(v) for v in (*receiver.neck.variables, *receiver.head.variables)]
    assert not same_weights(receiver.backbone, model.backbone)
    assert backbone_weights(receiver, path) is receiver
    assert same_weights(receiver.backbone, model.backbone)
    for variable, old in zip((*receiver.neck.variables, *receiver.head.variables), rest, strict=True):
        np.testing.assert_array_equal(variable, old)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"stages": (2, 1, 1, 1)}, r"there is no c2_1/conv1/conv/kernel in the file"),
        ({"width": 16}, "stem/conv/kernel"),
        ({"norm": "bn", "block": "bottleneck"}, "c2_0/conv1/conv/kernel"),
    ],
)
def test_backbone_of_another_shape_raises_and_names_the_variables(tmp_path, options, named):
    path = tmp_path / "backbone.keras"
    tiny.backbone().save(path)
    with pytest.raises(ValueError, match=named) as error:
        backbone_weights(tiny.detector(backbone=tiny.backbone(**options)), path)
    assert str(path) in str(error.value)


def test_deeper_source_backbone_raises(tmp_path):
    tiny.backbone(stages=(2, 1, 1, 1)).save(tmp_path / "deep.keras")
    with pytest.raises(ValueError, match="c2_1/conv1/conv/kernel"):
        backbone_weights(tiny.detector(), tmp_path / "deep.keras")


def test_backbone_of_another_kind_raises(tmp_path):
    bottlenecks = {"block": "bottleneck", "width": 8}
    tiny.backbone(**bottlenecks).save(tmp_path / "a.keras")
    caffe = tiny.detector(backbone=tiny.backbone(**bottlenecks, stride_in_1x1=True))
    with pytest.raises(UserError, match=r"a.keras was trained with ResNet.stride_in_1x1=False, but the model has True"):
        backbone_weights(caffe, tmp_path / "a.keras")


def test_load_expands_the_home_folder(monkeypatch, file, model):
    monkeypatch.setenv("HOME", str(file.parent.parent))
    assert same_weights(load(f"~/{file.parent.name}/model.keras"), model)
