"""Tests the serving folder, its clients with a small server, and that server under load."""

import importlib.util
import io
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tiny
from PIL import Image

from kerasdet.errors import UserError
from kerasdet.export import export_and_verify
from kerasdet.export.saved_model import serving

grpc = pytest.importorskip("grpc")
apis = pytest.importorskip("tensorflow_serving.apis.prediction_service_pb2_grpc")

pytestmark = pytest.mark.usefixtures("unoptimized_graphs", "warm_workers")
SERVER = Path(__file__).resolve().parents[1] / "prediction_server.py"


def encoded(image, kind="JPEG"):
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def model(models):
    return models("tiny")


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving")
    path, report = export_and_verify(model, folder, serving=True, verify_images=tiny.images())
    assert path == folder / "models" / "detector" / "1"
    assert str(path) in report and "partial" not in report
    return folder


@pytest.fixture(scope="module")
def server(folder):
    """Returns the port and process id of a server for the folder."""
    process = subprocess.Popen(
        [sys.executable, str(SERVER), str(folder / "models" / "detector")], stdout=subprocess.PIPE, text=True
    )
    try:
        port, warmed_up = map(int, process.stdout.readline().split())
        assert warmed_up == 4
        yield port, process.pid
    finally:
        process.kill()
        process.wait()


def client(folder, name):
    """Imports a client of the folder."""
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_serving_folder_is_complete(folder):
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "README.md",
        "batching.config",
        "docker-compose.yml",
        "grpc_client.py",
        "models",
        "models.config",
        "rest_client.py",
    }
    version = folder / "models" / "detector" / "1"
    assert (version / "saved_model.pb").is_file()
    assert [path.name for path in version.parent.iterdir()] == ["1"]


def test_server_parses_the_configuration(folder):
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    config = text_format.Parse(
        (folder / "models.config").read_text(), model_server_config_pb2.ModelServerConfig()
    ).model_config_list.config[0]
    assert config.name == serving.NAME
    assert config.base_path == "/models/detector"
    assert config.model_version_policy.latest.num_versions == 1
    batching = (folder / "batching.config").read_text()
    assert "max_batch_size { value: 4 }" in batching


def test_warmup_requests_cover_both_signatures(folder):
    from tensorflow_serving.apis import prediction_log_pb2

    file = folder / "models" / "detector" / "1" / "assets.extra" / "tf_serving_warmup_requests"
    logs = [
        prediction_log_pb2.PredictionLog.FromString(record)
        for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator()
    ]
    specs = [log.predict_log.request.model_spec for log in logs]
    assert {spec.name for spec in specs} == {"detector"}
    assert {spec.signature_name for spec in specs} == {"encoded", "serving_default"}
    shapes = {tuple(tf.make_ndarray(v).shape) for log in logs for v in log.predict_log.request.inputs.values()}
    assert shapes == {(1,), (1, 480, 640, 3), (1, 640, 480, 3)}


def test_next_version_keeps_existing_files(tmp_path):
    (tmp_path / "models" / "detector" / "9").mkdir(parents=True)
    (tmp_path / "models" / "detector" / "partial_x").mkdir()
    (tmp_path / "models.config").write_text("mine")
    assert serving.next_version(tmp_path).name == "10"
    with pytest.raises(UserError, match=rf"holds versions of a model itself \(9\): .* Pass {tmp_path}\."):
        serving.next_version(tmp_path / "models" / "detector")
    serving.write_templates(tmp_path)
    assert (tmp_path / "models.config").read_text() == "mine"
    assert (tmp_path / "README.md").is_file()


def test_missing_serving_api_raises_before_export(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis", None)
    with pytest.raises(UserError, match=r"pip install 'kerasdet\[serving\]'"):
        export_and_verify(model, tmp_path, serving=True, verify_images=tiny.images())
    assert not list(tmp_path.iterdir())


def test_failed_export_removes_its_version(tmp_path):
    with pytest.raises(RuntimeError, match="failed"), serving.new_version(tmp_path) as (path, version):
        path.mkdir()
        raise RuntimeError("failed")
    assert version == tmp_path / "models" / "detector" / "1"
    assert not list((tmp_path / "models" / "detector").iterdir())


def test_grpc_client_detections_equal_the_model(model, folder, server, tmp_path, capsys):
    module = client(folder, "grpc_client")
    stub = apis.PredictionServiceStub(grpc.insecure_channel(f"127.0.0.1:{server[0]}", module.UNLIMITED))
    images = tiny.images()
    found = module.detect(stub, [encoded(image, "PNG") for image in images])
    expected = model.detect(images)
    np.testing.assert_array_equal(found["num_detections"], [len(each) for each in expected])
    for boxes, each, image in zip(found["detection_boxes"], expected, images, strict=True):
        np.testing.assert_allclose(boxes[: len(each)] * np.tile(image.shape[:2], 2), each.boxes, atol=1e-3)
    Image.fromarray(images[0]).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no image")
    module.main([str(tmp_path / "a.png"), "--server", f"127.0.0.1:{server[0]}", "--score", "0"])
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(model.detect(images[0]))
    with pytest.raises(SystemExit, match=r"INVALID_ARGUMENT: (?s:.*)image_bytes\[1\] is not a JPEG or PNG file"):
        module.main([str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--server", f"127.0.0.1:{server[0]}"])


def test_rest_client_prints_detections_and_errors(folder, capsys, tmp_path):
    """The server answers as TF Serving documents its REST interface."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, body))
            outputs = {
                "num_detections": [1.0],
                "detection_scores": [[0.9, 0.0]],
                "detection_classes": [[2.0, 0.0]],
                "detection_boxes": [[[0.1, 0.2, 0.3, 0.4], [0.0] * 4]],
            }
            good = len(seen) == 1
            self.send_response(200 if good else 400)
            self.end_headers()
            self.wfile.write(json.dumps({"outputs": outputs} if good else {"error": "image_bytes[0] is bad"}).encode())

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        module = client(folder, "rest_client")
        (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff")
        arguments = [str(tmp_path / "a.jpg"), "--server", f"http://127.0.0.1:{http.server_address[1]}"]
        module.main(arguments)
        assert "class 2  score 0.900  box 0.1000 0.2000 0.3000 0.4000" in capsys.readouterr().out
        with pytest.raises(SystemExit, match=r'400: {"error": "image_bytes\[0\] is bad"}'):
            module.main(arguments)
    finally:
        http.shutdown()
    path, body = seen[0]
    assert path == "/v1/models/detector:predict"
    assert body == {"signature_name": "encoded", "inputs": {"image_bytes": [{"b64": "/9j/"}]}}


def resident(process):
    """Returns the resident memory of a process in MiB."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096 / 2**20


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc here")
def test_server_memory_is_stable_under_load(model, folder, server):
    """8 clients send images of many sizes, every fourth request bad: good ones are answered and memory stays flat."""
    port, process = server
    module = client(folder, "grpc_client")
    rng = np.random.default_rng(0)
    sizes = rng.integers(40, 300, (24, 2))
    images = [np.resize(tiny.images()[i % 3], (*size, 3)) for i, size in enumerate(sizes)]
    files = [encoded(image, ("JPEG", "PNG")[i % 2]) for i, image in enumerate(images)]
    expected = model.detect([np.array(Image.open(io.BytesIO(file))) for file in files[:1]])[0].scores
    bad = [b"", b"text", files[0][: len(files[0]) // 2], files[1][:40], files[1][:16] + b"\xff" * 8 + files[1][24:]]
    errors, answered, refused = [], [], []

    def work(number, requests):
        rng = np.random.default_rng(number)
        stub = apis.PredictionServiceStub(grpc.insecure_channel(f"127.0.0.1:{port}", module.UNLIMITED))
        for index in range(requests):
            if index % 4 == 3:
                try:
                    module.detect(stub, [files[2], bad[(index // 4 + number) % len(bad)]])
                    errors.append("a bad request was answered")
                except grpc.RpcError as error:
                    refused.append(error)
                continue
            chosen = [0, *rng.integers(0, len(files), rng.integers(0, 3))]
            try:
                found = module.detect(stub, [files[k] for k in chosen])
                answered.append(len(found["num_detections"]) == len(chosen))
                if len(chosen) == 1:
                    np.testing.assert_allclose(found["detection_scores"][0, : len(expected)], expected, atol=1e-5)
            except (grpc.RpcError, AssertionError) as error:
                errors.append(error)

    def load(requests):
        threads = [threading.Thread(target=work, args=(number, requests)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    load(8)
    before = resident(process)
    load(16)
    assert not errors, errors[:3]
    assert len(answered) == 8 * 18
    assert all(answered)
    assert len(refused) == 8 * 6
    assert {error.code() for error in refused} == {grpc.StatusCode.INVALID_ARGUMENT}
    assert all("image_bytes[1] " in error.details() for error in refused)
    assert resident(process) < before + max(60, 0.1 * before)
