"""Tests the checkpoint readers on real torch files, on hand-made files and on files that they must refuse."""

import io
import json
import pickle
import struct
import tarfile
import zipfile

import fuzz_pickles
import numpy as np
import pytest
import torch_files
from make_data import DATA, expected
from torch_files import FLOAT4, Build, Call, Global, New, Persistent, Raw, Text2, dump, one_tensor

from kerasdet.checkpoints import read
from kerasdet.errors import UserError

ARRAYS = {
    "conv.weight": np.arange(12, dtype=np.float32).reshape(3, 4) / 8,
    "bn.num_batches_tracked": np.array(3, np.int64),
}


@pytest.fixture
def read_bytes(tmp_path):
    """Reads bytes as a file of the given name."""

    def reader(data, name="file.bin"):
        path = tmp_path / name
        path.write_bytes(data)
        return read(path)

    return reader


@pytest.fixture
def refused(tmp_path):
    """Returns the error message for bytes, without the path that it must begin with."""

    def message(data, name="file.bin"):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(UserError) as caught:
            read(path)
        text = str(caught.value)
        assert text.startswith(f"{path}: ") and "\n" not in text and len(text) < 1000
        assert "save model.state_dict()" in text
        return text.removeprefix(f"{path}: ")

    return message


def same(state, arrays):
    assert list(state) == list(arrays)
    for name, array in arrays.items():
        assert state[name].dtype == array.dtype and state[name].shape == array.shape, name
        np.testing.assert_array_equal(state[name], array, err_msg=name)
        assert state[name].flags.writeable and state[name].flags.c_contiguous and state[name].dtype.isnative
    return True


@pytest.mark.parametrize("file", sorted(DATA.glob("*.pth")), ids=lambda path: path.stem)
def test_files_of_real_torch_are_read(file):
    same(read(file), expected())


def test_repository_has_files_of_real_torch():
    assert len(list(DATA.glob("*.pth"))) >= 5


def test_arrays_own_their_memory():
    state = read(DATA / "state_zip.pth")
    before = state["slice"].copy()
    state["base"][:] = 0
    np.testing.assert_array_equal(state["slice"], before)


@pytest.mark.parametrize("write", [torch_files.torch_zip, torch_files.torch_legacy], ids=["zip", "legacy"])
def test_hand_made_torch_files_are_read(read_bytes, write):
    assert same(read_bytes(write(ARRAYS)), ARRAYS)


def test_contents_decide_about_the_format(read_bytes):
    assert same(read_bytes(torch_files.torch_zip(ARRAYS), "a.safetensors"), ARRAYS)
    for name in ("a.pkl", "a.npz", "a.pth", "a"):
        assert same(read_bytes(torch_files.torch_zip(ARRAYS), name), ARRAYS)
        assert same(read_bytes(fuzz_pickles.safetensors_file(ARRAYS), name), ARRAYS)
        assert same(read_bytes(pickle.dumps(ARRAYS), name), ARRAYS)


@pytest.mark.parametrize("protocol", range(6))
def test_numpy_pickles_of_every_protocol_are_read(read_bytes, protocol):
    arrays = {
        "c": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "big": np.arange(3, dtype=">f4"),
        "double": np.array(0.5),
        "half": np.array([1, 2], np.float16),
        "flags": np.array([True, False]),
        "ints": np.array([-1, 2**40]),
        "empty": np.zeros((0, 2), np.float32),
    }
    others = {"text": np.array(["a"]), "scalar": np.float32(3), "epoch": 3, "names": ["a"], 3: "three", "set": {1}}
    state = read_bytes(pickle.dumps({"model": {**arrays, **others}, "__author__": "x"}, protocol), "model.pkl")
    want = {name: a.astype(np.float32) if a.dtype.kind == "f" else a for name, a in arrays.items()}
    assert same(state, want)


def test_detectron2_model_zoo_pickle_is_read(read_bytes):
    contents = {"model": ARRAYS, "__author__": "Detectron2 Model Zoo", "matching_heuristics": True}
    assert same(read_bytes(pickle.dumps(contents, 2), "R-50.pkl"), ARRAYS)


def test_caffe2_pickle_of_python_2_is_read(read_bytes):
    weight = np.arange(-6, 6, dtype=np.float32).reshape(3, 4)
    momentum = Build(torch_files.array2(weight), torch_files.array2(weight).state)
    blobs = {
        "conv1_w": torch_files.array2(weight),
        "conv1_w_momentum": momentum,
        "lr": torch_files.array2(np.array([0.1], np.float32)),
        "model_iter": torch_files.array2(np.array([9])),
        "weight_order": Text2(b"v1\xff"),
    }
    assert same(read_bytes(dump({"blobs": blobs, "cfg": Text2(b"A: 1")})), {"conv1_w": weight})
    assert same(read_bytes(dump(blobs)), {"conv1_w": weight})


def test_python_2_ordered_dict_and_protocol_0_strings_are_read(read_bytes):
    tree, stored = torch_files.state_tree(ARRAYS)
    pairs = Call(Global("collections", "OrderedDict"), ([[name, value] for name, value in tree.items()],))
    raw = {key: array.tobytes() for key, array in stored.items()}
    assert same(read_bytes(torch_files.zip_file({"state_dict": pairs}, raw)), ARRAYS)
    raw = np.array([1.5, -2], np.float32)
    array = torch_files.array2(raw)
    string = Raw(b"S" + repr(raw.tobytes())[1:].encode() + b"\n")
    array.state = (*array.state[:4], string)
    assert same(read_bytes(dump({"w": array})), {"w": raw})


@pytest.mark.parametrize("container", ["model", "state_dict", "model_state_dict", "blobs"])
def test_containers_and_prefix_are_removed(read_bytes, container):
    prefixed = {f"module.{name}": array for name, array in ARRAYS.items()}
    assert same(read_bytes(pickle.dumps({container: prefixed, "epoch": 3})), ARRAYS)
    mixed = {"module.a": ARRAYS["conv.weight"], "b": ARRAYS["conv.weight"]}
    assert list(read_bytes(pickle.dumps({container: mixed}))) == ["module.a", "b"]


def test_mmengine_history_buffer_is_ignored(read_bytes):
    history = Global("mmengine.logging.history_buffer", "HistoryBuffer")
    buffer = Build(
        New(history, ()), {"_statistics": {"mean": Call(Global("__builtin__", "getattr"), (history, "mean"))}}
    )
    tree, stored = torch_files.state_tree(ARRAYS)
    contents = {"message_hub": {"log_scalars": {"loss": buffer}}, "state_dict": tree}
    raw = {key: array.tobytes() for key, array in stored.items()}
    assert same(read_bytes(torch_files.zip_file(contents, raw)), ARRAYS)


def mmengine_objects():
    """Returns what mmengine and its plug-ins pickle beside the weights, as nodes that no reader may execute."""
    config = Global("mmengine.config.config", "ConfigDict")
    scalar = Call(Global("numpy.core.multiarray", "scalar"), (Global("numpy", "float64"), Text2(b"\0" * 8)))
    return {
        "cfg": Build(Call(Global("mmengine.config.config", "Config"), ()), {"_cfg_dict": Call(config, ({"a": 1},))}),
        "old_cfg": Build(New(Global("mmcv.utils.config", "ConfigDict"), ()), {}),
        "hub": New(Global("mmengine.logging.message_hub", "MessageHub"), ("name",)),
        "instances": Build(New(Global("mmengine.structures.instance_data", "InstanceData"), ()), {"boxes": 3}),
        "sampler": New(Global("mmdet.models.task_modules.samplers", "PseudoSampler"), ()),
        "best": scalar,
        "array": torch_files.array2(np.arange(3)),
        "path": Call(Global("pathlib", "PosixPath"), ("work_dirs", "last")),
        "lr": [0.01, None, True],
    }


@pytest.mark.parametrize("write", ["zip", "legacy"])
def test_mmengine_objects_are_ignored_and_class_names_read(read_bytes, write):
    tree, stored = torch_files.state_tree(ARRAYS, *([None] if write == "legacy" else []))
    meta = {**mmengine_objects(), "dataset_meta": {"classes": ("cat", "dog"), "palette": [(1, 2, 3)]}}
    contents = {"meta": meta, "optimizer": {"state": {"w": tree["conv.weight"]}, "param_groups": []}}
    contents |= {"message_hub": mmengine_objects(), "param_schedulers": [mmengine_objects()], "state_dict": tree}
    raw = {key: array.tobytes() for key, array in stored.items()}
    if write == "legacy":
        data = torch_files.legacy_file(contents, {key: (a.size, a.tobytes()) for key, a in stored.items()})
    else:
        data = torch_files.zip_file(contents, raw)
    state = read_bytes(data)
    assert same(state, ARRAYS)
    assert state.class_names == ("cat", "dog")


@pytest.mark.parametrize(
    "meta, names",
    [
        ({"CLASSES": ("cat", "dog")}, ("cat", "dog")),
        ({"dataset_meta": {"CLASSES": ["cat"]}, "CLASSES": ("other",)}, ("cat",)),
        ({"dataset_meta": {"classes": "cat"}}, ("cat",)),
        ({"dataset_meta": {"classes": None}, "CLASSES": None}, None),
        ({"CLASSES": (1, 2)}, None),
        ({"epoch": 12}, None),
        ("text", None),
    ],
    ids=str,
)
def test_class_names_of_mmdetection_2_and_3(read_bytes, meta, names):
    assert read_bytes(pickle.dumps({"meta": meta, "state_dict": ARRAYS})).class_names == names
    assert read_bytes(pickle.dumps(ARRAYS)).class_names is None


def test_running_means_in_state_dict_win_over_the_weights_that_training_goes_on_with(read_bytes):
    """mmengine's EMAHook swaps the two when it saves, and so did mmdetection 2 with its buffers `ema_...`."""
    others = {name: np.asarray(array + 1) for name, array in ARRAYS.items()}
    raw_weights = {f"module.{name}": array for name, array in others.items()} | {"steps": np.array(7)}
    assert same(read_bytes(pickle.dumps({"ema_state_dict": raw_weights, "state_dict": ARRAYS})), ARRAYS)
    assert same(read_bytes(pickle.dumps({"meta": {}, "ema_state_dict": raw_weights})), others)
    buffers = {f"ema_{name.replace('.', '_')}": array for name, array in others.items()}
    assert same(read_bytes(pickle.dumps({"state_dict": {**buffers, **ARRAYS}})), ARRAYS)
    wrapped = {f"module.{name}": array for name, array in {**buffers, **ARRAYS}.items()}
    assert same(read_bytes(pickle.dumps({"state_dict": wrapped})), ARRAYS)
    assert same(read_bytes(pickle.dumps({f"ema_{name}": array for name, array in others.items()})), others)


@pytest.mark.parametrize("module, name", [("mmengine_evil", "x"), ("mm.dangerous", "load"), ("os", "system")])
def test_other_names_beside_the_weights_are_refused(refused, module, name):
    assert f"{module}.{name}" in refused(dump({"meta": Call(Global(module, name), ("x",)), "state_dict": {}}))


def test_legacy_storage_views_are_read(read_bytes):
    view = torch_files.storage("FloatStorage", "7", 4, ("70", 1, 2))
    file = torch_files.legacy_file({"w": torch_files.tensor(view, 1, (1,), (1,))}, {"7": (4, FLOAT4)})
    assert same(read_bytes(file), {"w": np.array([3], np.float32)})


def test_big_endian_torch_zip_is_read(read_bytes):
    tree = {"w": torch_files.tensor(torch_files.storage("FloatStorage", "0", 4), 0, (4,), (1,))}
    file = torch_files.zip_file(tree, {"0": struct.pack(">4f", 1, 2, 3, 4)}, byteorder=b"big")
    assert same(read_bytes(file), {"w": np.arange(1, 5, dtype=np.float32)})


def test_tensor_v3_uses_its_own_dtype(read_bytes):
    source = Persistent(("storage", Global("torch.storage", "UntypedStorage"), "0", "cpu", 4))
    arguments = (source, 0, (2,), (1,), False, None, Global("torch", "uint16"))
    file = torch_files.zip_file(
        {"w": Call(Global("torch._utils", "_rebuild_tensor_v3"), arguments)}, {"0": b"\1\0\2\1"}
    )
    assert same(read_bytes(file), {"w": np.array([1, 258], np.uint16)})


def test_npz_is_read(read_bytes):
    arrays = {"a": np.arange(6, dtype=">f8").reshape(2, 3).T, "b.c": np.array([1, 2], np.int32), "s": np.array(["x"])}
    for save in (np.savez, np.savez_compressed):
        out = io.BytesIO()
        save(out, **arrays)
        assert same(read_bytes(out.getvalue()), {"a": arrays["a"].astype(np.float32), "b.c": arrays["b.c"]})


def test_safetensors_of_every_dtype_are_read(read_bytes):
    header = {
        "bf": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]},
        "__metadata__": {"format": "pt"},
        "h": {"dtype": "F16", "shape": [1, 1], "data_offsets": [4, 6]},
        "n": {"dtype": "BOOL", "shape": [], "data_offsets": [6, 7]},
        "e": {"dtype": "F32", "shape": [0], "data_offsets": [7, 7]},
    }
    text = json.dumps(header).encode().ljust(400)
    data = struct.pack("<Q", len(text)) + text + b"\x80\x3f\x20\xbe" + np.float16(0.5).tobytes() + b"\1"
    want = {
        "bf": np.array([1, -0.15625], np.float32),
        "h": np.array([[0.5]], np.float32),
        "n": np.array(True),
        "e": np.zeros(0, np.float32),
    }
    assert same(read_bytes(data), want)


@pytest.mark.parametrize("seed", range(18 * 2 + 3))
def test_attacks_are_refused_by_name(tmp_path, refused, seed):
    sentinel = tmp_path / "sentinel"
    attacks = fuzz_pickles.attacks(sentinel)
    attack = Raw(attacks[seed])
    text = refused(dump({"model": {"w": attack}}))
    assert "refused" in text and any(
        name in text for name in ("system", "eval", "exec", "getoutput", "getattr", "load")
    )
    assert text == refused(torch_files.zip_file({"w": attack}, {}))
    assert text == refused(torch_files.legacy_file({"w": attack}, {}))
    assert not sentinel.exists()


def test_every_attack_is_tested(tmp_path):
    assert len(fuzz_pickles.attacks(tmp_path)) == 18 * 2 + 3


ARRAY = torch_files.array2(np.zeros(2, np.float32))
NAMED = Global("collections", "OrderedDict")
OBJECTS = Call(Global("numpy", "dtype"), ("O8", 0, 1))


@pytest.mark.parametrize(
    ("node", "word"),
    [
        (Build(Global("torch._utils", "_rebuild_tensor_v2"), (None, {"__defaults__": (1,)})), "sets the state"),
        (Build(Global("torch", "FloatStorage"), {"x": 1}), "sets the state"),
        (Build([], {"x": 1}), "sets the state"),
        (Call("text", ()), "calls an object of type str"),
        (Call(Global("torch", "FloatStorage"), (4,)), "calls an object of type Element"),
        (Call(Global("torch", "Size"), ("ab",)), "shape"),
        (Call(Global("torch", "Size"), ((1,), 2)), "arguments that torch and NumPy do not write"),
        (Call(Global("builtins", "getattr"), (NAMED, "__init__")), "builtins.getattr"),
        (Call(Global("copy_reg", "_reconstructor"), (NAMED, None, None)), "refused"),
        (Call(Global("_codecs", "encode"), ("a", "rot13")), "latin1"),
        (Call(Global("_codecs", "decode"), ("a", "latin1")), "_codecs.decode"),
        (Call(Global("numpy.core.multiarray", "_reconstruct"), (NAMED, (0,), "b")), "numpy.ndarray"),
        (Global("torchvision.models.resnet", "ResNet"), "torchvision.models.resnet.ResNet"),
        (Global("numpy", "load"), "numpy.load"),
        (Global("a" * 5000, "b"), "refused"),
        (OBJECTS, "Python objects"),
        (Build(ARRAY.target, (1, (1,), OBJECTS, False, [1])), "Python objects"),
        (Build(ARRAY.target, (1, (1,), ARRAY.state[2], False, [1])), "Python objects"),
        (Build(ARRAY.target, (1, (-1,), ARRAY.state[2], False, "")), "shape"),
        (Build(ARRAY.target, (1, (3,), ARRAY.state[2], False, Text2(b"\0" * 8))), "has 8 bytes, but shape"),
        (Build(ARRAY.target, (1, (2**62, 4), ARRAY.state[2], False, Text2(b"\0" * 8))), "fill the memory"),
        (ARRAY.target, "never sets its data"),
        (Persistent(("storage", Global("torch", "FloatStorage"), "0", "cpu", 4)), "persistent"),
        (Raw(b"\x82\x01"), "EXT1"),
        (Raw(b"\x97"), "NEXT_BUFFER"),
        (Raw(b"h\x09"), "refers to an object before it is created"),
        (Raw(b"\x8b" + struct.pack("<i", 100) + b"\1" * 100), "512 bits"),
        (Raw(b"cos\nsystem\n"), "os.system"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_bad_pickles_raise_and_name_the_reason(refused, node, word):
    assert word in refused(dump({"w": node}))


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "word"),
    [
        ((5,), (1,), 0, "outside its storage"),
        ((4,), (1,), 1, "outside its storage"),
        ((2, 2), (3, 1), 0, "outside its storage"),
        ((1,), (1,), 4, "outside its storage"),
        ((2,), (2**62,), 0, "outside its storage"),
        ((1,), (1,), -1, "one stride for each axis"),
        ((4,), (-1,), 3, "stride"),
        ((-4,), (1,), 0, "shape"),
        ((4, 1), (1,), 0, "one stride for each axis"),
        ((True,), (1,), 0, "shape"),
        ((2.0,), (1,), 0, "shape"),
        ((1,) * 65, (1,) * 65, 0, "shape"),
        ((2**40,), (0,), 0, "fill the memory"),
    ],
)
def test_tensor_outside_its_storage_raises(refused, shape, strides, offset, word):
    assert word in refused(one_tensor(shape, strides, offset))


def test_tensor_may_reach_the_edges_of_its_storage(read_bytes):
    assert same(read_bytes(one_tensor((1, 2), (2**70, 2), 1)), {"w": np.array([[2, 4]], np.float32)})
    assert same(read_bytes(one_tensor((3, 2), (1, 1))), {"w": np.array([[1, 2], [2, 3], [3, 4]], np.float32)})
    assert same(read_bytes(one_tensor((), (), 3)), {"w": np.array(4, np.float32)})
    assert same(read_bytes(one_tensor((0,), (1,), 0, 0, b"")), {"w": np.zeros(0, np.float32)})


def test_storage_of_the_wrong_size_raises(refused):
    assert "12 bytes but declares 16" in refused(one_tensor((4,), (1,), raw=FLOAT4[:12]))
    assert "16 bytes but declares 32" in refused(one_tensor((4,), (1,), kind="DoubleStorage"))
    tree = {"w": torch_files.tensor(torch_files.storage("FloatStorage", "0", 4), 0, (4,), (1,))}
    assert "missing" in refused(torch_files.zip_file(tree, {"1": FLOAT4}))
    assert "missing" in refused(torch_files.legacy_file(tree, {}))
    assert "truncated" in refused(torch_files.legacy_file(tree, {"0": (2**60, FLOAT4)}))
    assert "8 bytes but declares 16" in refused(torch_files.legacy_file(tree, {"0": (2, FLOAT4[:8])}))
    assert "which no tensor uses" in refused(torch_files.legacy_file(tree, {"x": (4, FLOAT4)}))
    assert "'byteorder' is b'odd'; expected" in refused(torch_files.zip_file(tree, {"0": FLOAT4}, byteorder=b"odd"))


def test_truncated_files_raise(tmp_path, refused):
    writers = (torch_files.torch_zip, torch_files.torch_legacy, pickle.dumps, fuzz_pickles.safetensors_file)
    for data in [write(ARRAYS) for write in writers]:
        for end in range(0, len(data), 7):
            refused(data[:end])


def test_other_files_raise_and_missing_files_are_not_found(refused, tmp_path):
    assert "empty" in refused(b"")
    assert "none of the supported formats" in refused(b"once upon a time")
    (tmp_path / "x.safetensors").write_bytes(b"<!DOCTYPE html><html>")
    with pytest.raises(UserError, match="the file is a web page"):
        read(tmp_path / "x.safetensors")
    assert "not a dictionary" in refused(pickle.dumps([1, 2]))
    assert "no tensors" in refused(pickle.dumps({"model": {"a": 1}}))
    assert "no tensors" in refused(pickle.dumps({}))
    with pytest.raises(FileNotFoundError, match="the file does not exist"):
        read(tmp_path / "absent.pth")
    with pytest.raises(ValueError, match="cannot be read"):
        read(tmp_path)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    assert "tar file" in refused(out.getvalue())


def test_what_a_failed_download_leaves_is_recognised(tmp_path):
    for content, word in (
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n", "a pointer of Git LFS"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
    ):
        (tmp_path / "file.pth").write_bytes(content)
        with pytest.raises(UserError, match=rf"file\.pth: the file is {word}, not "):
            read(tmp_path / "file.pth")


def test_dictionary_that_contains_itself_raises(refused):
    assert "no tensors" in refused(b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s.")


def test_zip_files_without_checkpoint_raise(refused):
    def zipped(entries, **options):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", **options) as archive:
            for name, raw in entries.items():
                archive.writestr(name, raw)
        return out.getvalue()

    assert "neither one data.pkl" in refused(zipped({"readme": b"x"}))
    assert "neither one data.pkl" in refused(zipped({}))
    assert "TorchScript" in refused(zipped({"m/data.pkl": dump({}), "m/constants.pkl": dump(())}))
    assert "another method than deflate" in refused(zipped({"m/data.pkl": dump({})}, compression=zipfile.ZIP_BZIP2))
    encrypted = bytearray(zipped({"m/data.pkl": dump({})}))
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        encrypted[encrypted.index(signature) + flags] |= 1
    assert "encrypted" in refused(bytes(encrypted))
    npy = io.BytesIO()
    np.save(npy, np.array([{}], object), allow_pickle=True)
    assert "Python objects" in refused(zipped({"a.npy": npy.getvalue()}))
    corrupt = torch_files.torch_zip(ARRAYS).replace(ARRAYS["conv.weight"].tobytes(), b"\1" * 48)
    assert "CRC" in refused(corrupt)


@pytest.mark.parametrize(
    ("header", "word"),
    [
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, "does not match"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, "4 bytes after"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, "gap"),
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, "truncated"),
        ({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, "no valid"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, "gap"),
        ({"a": {"dtype": "F32", "shape": [2**70], "data_offsets": [0, 8]}}, "fill the memory"),
        ({"a": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}}, "F8_E4M3"),
        ({"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}, "expected one of F64, F32"),
        ({"a": {"shape": [2], "data_offsets": [0, 8]}}, "no valid"),
        ({"a": [1]}, "no valid"),
        ({name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in "ab"}, "overlaps"),
    ],
)
def test_bad_safetensors_headers_raise(refused, header, word):
    text = json.dumps(header).encode()
    assert word in refused(struct.pack("<Q", len(text)) + text + bytes(8))


def test_safetensors_headers_other_than_json_raise(refused):
    for text in (b"{nothing", b"{" * 100000, b'{"a":' * 100000, b"[]", b"\xff\xfe"):
        assert "header" in refused(struct.pack("<Q", len(text)) + text, "x.safetensors")
    for length in (2**63, 2**64 - 1, 100):
        assert "longer than the file" in refused(struct.pack("<Q", length) + b"{}", "x.safetensors")


def test_fuzz_starts_from_valid_files(read_bytes):
    for _, data, wrap in fuzz_pickles.seeds():
        assert len(read_bytes(wrap(data))) in (1, 3, 15)


def test_mutated_files_read_or_raise_user_errors(tmp_path):
    outcomes = fuzz_pickles.run(3000, 20240, tmp_path)
    assert sum(outcomes.values()) == 3000 and outcomes["read"] > 30 and outcomes["refused"] > 1000
