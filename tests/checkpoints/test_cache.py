"""Tests published weights from a mirror on loopback to the model: fetched, checked, converted and cached once."""

import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import standins
import tensorflow as tf
import tiny
from file_server import serving, wait_until
from PIL import Image
from standins import BACKBONE, RETINANET

import kerasdet
from kerasdet import cli
from kerasdet.checkpoints import SOURCES, cache, to_model, zoo
from kerasdet.checkpoints import download as download_module
from kerasdet.errors import UserError
from kerasdet.keras_compat import flatten_layers
from kerasdet.loading import backbone_weights, load_detector, pretrained, require_model
from kerasdet.paths import cache_home


@pytest.fixture(scope="module")
def published():
    return {name: standins.published(name) for name in (RETINANET, BACKBONE)}


@pytest.fixture
def server(published, monkeypatch, tmp_path):
    """A mirror with the stand-ins, and an empty cache."""
    with serving() as server:
        for name, (data, url) in published.items():
            server.files[url.removeprefix("https://")] = data
            standins.install(name, url, monkeypatch.setitem)
        monkeypatch.setenv("KERASDET_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("KERASDET_MIRROR", server.url)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(download_module, "WAITS", (0.01,) * 3)
        yield server


@pytest.fixture
def no_conversion(monkeypatch):
    """Converts by copying the file, for tests of what surrounds the conversion."""

    def convert(weights, file, out):
        with cache.replacing(out) as partial:
            partial.write_bytes(file.read_bytes())

    monkeypatch.setattr(cache, "convert", convert)


def folder_of(name):
    return cache.model_folder(zoo.ZOO[name])


def error_of(name):
    with pytest.raises(UserError) as error:
        folder_of(name)
    text = str(error.value)
    assert "\n" not in text and text.endswith(".")
    return text


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# From a name to a model


def test_load_fetches_and_converts_once_and_then_works_offline(server):
    model = kerasdet.load(RETINANET)
    expected = to_model(standins.state(RETINANET), RETINANET)
    for ours, theirs in zip(tiny.weights(model), tiny.weights(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (model.class_names[:2], model.class_names[11], model.class_names[89]) == (
        ("person", "bicycle"),
        "N/A",
        "toothbrush",
    )
    assert len(server.requests) == 1
    server.close()
    assert kerasdet.load(Path(RETINANET)).class_names == model.class_names
    tuned = pretrained(RETINANET, num_classes=3)
    assert tuned.num_classes == 3
    np.testing.assert_array_equal(tiny.weights(tuned.backbone)[0], tiny.weights(model.backbone)[0])
    assert cache.is_cached(zoo.ZOO[RETINANET])


def test_backbone_weights_come_by_name(server):
    spec = SOURCES[BACKBONE]
    receiver = tiny.detector(backbone=kerasdet.ResNet(**spec.backbone))
    backbone_weights(receiver, BACKBONE)
    state = standins.state(BACKBONE)
    np.testing.assert_array_equal(receiver.backbone.variables[0], state["stem.conv1.weight"].transpose(2, 3, 1, 0))


def test_backbone_is_no_detector_and_is_not_fetched(server):
    with pytest.raises(UserError, match=rf"{BACKBONE} is a backbone, not a detector: choose a detector"):
        load_detector(BACKBONE)
    assert not server.requests


def test_conversion_ignores_the_strategy_the_policy_and_the_seeds_of_its_caller(server):
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        random.seed(5)
        with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
            folder_of(BACKBONE)
        found = random.random()
    finally:
        keras.mixed_precision.set_global_policy("float32")
    random.seed(5)
    assert found == random.random()
    model = kerasdet.load(BACKBONE)
    assert {layer.dtype_policy.name for layer in flatten_layers(model)} == {"float32"}


def test_existing_folder_wins_over_a_name(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(BACKBONE).mkdir(parents=True)
    tiny.detector().save(Path(BACKBONE) / "model.keras")
    assert kerasdet.load(BACKBONE).num_classes == 5
    assert not server.requests


def test_name_is_checked_without_fetching(server):
    require_model(RETINANET)
    with pytest.raises(FileNotFoundError, match="no such name in the zoo"):
        require_model("mmdet/yolo")
    assert not server.requests


# Mirrors, and no network


def test_folder_is_a_mirror(server, published, tmp_path, monkeypatch, no_conversion):
    data, url = published[BACKBONE]
    file = tmp_path / "disk" / url.removeprefix("https://")
    file.parent.mkdir(parents=True)
    file.write_bytes(data)
    monkeypatch.setenv("KERASDET_MIRROR", str(tmp_path / "disk"))
    assert (folder_of(BACKBONE) / "model.keras").read_bytes() == data
    assert not server.requests


def test_publisher_is_asked_without_a_mirror(monkeypatch):
    monkeypatch.delenv("KERASDET_MIRROR", raising=False)
    url = zoo.ZOO[RETINANET].url
    assert cache.mirrored(url) == url


def test_no_network_is_said_with_the_name_and_the_ways_out(server, tmp_path):
    server.close()
    assert error_of(BACKBONE) == (
        f"{BACKBONE} is not in the cache {tmp_path / 'home'} and cannot be downloaded: {server.url}/download.example/"
        "R-50.pkl cannot be reached (Connection refused). Connect to the internet once, set KERASDET_MIRROR to a "
        "server or folder that has the file, or convert your own copy with `kerasdet convert`."
    )


def test_name_is_exported_into_a_folder_that_exists(server, tmp_path, capsys):
    server.close()
    assert cli.main(["export", RETINANET, str(tmp_path), "--serving"]) == 2
    assert f"{RETINANET} is not in the cache" in capsys.readouterr().err


def test_default_folder_is_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("KERASDET_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_home() == tmp_path / "kerasdet"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_home() == tmp_path / ".cache" / "kerasdet"
    monkeypatch.setenv("KERASDET_HOME", "~/models")
    assert cache_home() == tmp_path / "models"


# Wrong and damaged files


def test_wrong_hash_leaves_no_model(server, tmp_path):
    name = next(path for path in server.files if path.endswith(".pth"))
    server.files[name] = b"<html>Please log in</html>"
    assert re.search(
        r"the SHA256 of its 26 bytes begins with \w{12}; expected \w{8}\. The file was damaged", error_of(RETINANET)
    )
    assert not [file for file in files_below(tmp_path / "home") if not file.endswith((".lock", ".json"))]


def test_file_that_the_disk_damaged_is_fetched_again(server, no_conversion):
    data = (folder_of(RETINANET) / "model.keras").read_bytes()
    cache.published_file(zoo.ZOO[RETINANET]).write_bytes(data[:-1] + b"x")
    (folder_of(RETINANET) / "model.keras").unlink()
    assert (folder_of(RETINANET) / "model.keras").read_bytes() == data
    assert len(server.requests) == 2


def test_model_that_the_disk_damaged_is_converted_again(server):
    expected = tiny.weights(kerasdet.load(BACKBONE))
    file = folder_of(BACKBONE) / "model.keras"
    data = file.read_bytes()
    middle = len(data) // 2
    for damaged in (data[:middle], data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]):
        file.write_bytes(damaged)
        for ours, theirs in zip(tiny.weights(kerasdet.load(BACKBONE)), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert len(server.requests) == 1


def test_other_file_without_a_published_hash_does_not_stay(server):
    """The login page of a network must not be taken for the file for ever."""
    data = server.files["download.example/R-50.pkl"]
    server.files["download.example/R-50.pkl"] = b"<html>Please log in</html>"
    text = error_of(BACKBONE)
    assert "/download.example/R-50.pkl was removed from the cache. " in text and "is a web page" in text
    server.files["download.example/R-50.pkl"] = data
    assert folder_of(BACKBONE)


def test_first_hash_of_a_file_without_a_published_one_is_remembered(server, no_conversion):
    folder = folder_of(BACKBONE)
    cache.published_file(zoo.ZOO[BACKBONE]).unlink()
    (folder / "model.keras").unlink()
    server.files["download.example/R-50.pkl"] += b"x"
    assert "R-50.pkl has" in error_of(BACKBONE)


def test_file_of_another_model_is_not_taken(server, monkeypatch):
    """A row of the zoo with a right hash and a wrong source."""
    monkeypatch.setitem(SOURCES, RETINANET, dataclasses.replace(SOURCES[RETINANET], head={"norm": "gn"}))
    assert f"The checkpoint does not fit {RETINANET}" in error_of(RETINANET)


def test_changed_source_is_converted_anew_without_a_download(server, monkeypatch, no_conversion):
    first = folder_of(BACKBONE)
    monkeypatch.setitem(SOURCES, BACKBONE, dataclasses.replace(SOURCES[BACKBONE], names={"x": "y"}))
    assert folder_of(BACKBONE) != first
    assert len(server.requests) == 1


def test_disk_that_fills_up_during_the_conversion_leaves_no_model(server, tmp_path):
    cache.fetch(zoo.ZOO[BACKBONE])
    with tiny.disk(100_000):
        assert "model.keras cannot be written: File too large." in error_of(BACKBONE)
    assert files_below(tmp_path / "home" / "models") == [f"{BACKBONE}/.lock"]
    assert folder_of(BACKBONE) and len(server.requests) == 1


def test_folder_that_cannot_be_written_raises(server, tmp_path):
    (tmp_path / "home").write_text("")
    text = error_of(BACKBONE)
    assert ". Set KERASDET_HOME to a folder that can be written to." in text and "[Errno" not in text


# Several processes


def test_processes_share_one_download_and_one_conversion(server, no_conversion):
    children = []
    for _ in range(4):
        if not (child := os.fork()):
            os._exit(0 if (folder_of(BACKBONE) / "model.keras").exists() else 1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert len(server.requests) == 1


def test_killed_process_releases_the_others(server, no_conversion, published):
    server.stalls = [1000]
    if not (child := os.fork()):
        folder_of(BACKBONE)
        os._exit(0)
    partial = cache.published_file(zoo.ZOO[BACKBONE]).with_name("R-50.pkl.partial")
    wait_until(lambda: partial.exists() and partial.stat().st_size == 1000)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert (folder_of(BACKBONE) / "model.keras").read_bytes() == published[BACKBONE][0]
    assert server.ranges_asked() == [None, "bytes=1000-"]


# From an empty machine to detections


def run_command(settings, *arguments):
    """Runs the command line in a process of its own, which knows the stand-in."""
    paths = [str(Path(standins.__file__).parent), str(Path(tiny.__file__).parent), str(Path(cli.__file__).parents[2])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, standins.__file__, json.dumps(settings), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)


@pytest.mark.slow
def test_one_command_from_a_name_to_detections(server, published, tmp_path):
    """An empty machine with a mirror: a process is killed in the conversion, the next detects, the third is offline."""
    settings = {"name": RETINANET, "url": published[RETINANET][1]}
    Image.fromarray(tiny.images()[0]).save(tmp_path / "photo.png")
    arguments = ["predict", RETINANET, str(tmp_path / "photo.png"), "--score-threshold", "0.05", "--json"]
    killed = run_command({**settings, "kill": True}, *arguments)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not list((tmp_path / "home").rglob("model.keras"))
    result = run_command(settings, *arguments)
    assert result.returncode == 0, result.stderr
    (entry,) = json.loads(result.stdout)
    assert entry["detections"] and {found["label"] for found in entry["detections"]} <= set(zoo.COCO_CLASSES_BY_ID)
    assert len(server.requests) == 1  # the killed process had downloaded the file
    server.close()
    offline = run_command(settings, *arguments)
    assert offline.returncode == 0, offline.stderr
    assert json.loads(offline.stdout) == [entry]
    assert not [file for file in files_below(tmp_path / "home") if "partial" in file]
