import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from kerasdet.training import Checkpointing, checks, make_strategy
from kerasdet.training.strategy import wait_for_workers
from kerasdet.training.workers import run_workers, worker_environments


def script(text):
    return [sys.executable, "-c", "import json, os, sys, signal\n" + text]


def test_worker_environments_list_all_workers_and_share_out_gpus(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    environments = worker_environments(2, 4)
    configs = [json.loads(environment["TF_CONFIG"]) for environment in environments]
    assert configs[0]["cluster"] == configs[1]["cluster"]
    assert len(set(configs[0]["cluster"]["worker"])) == 2
    assert [config["task"] for config in configs] == [{"type": "worker", "index": 0}, {"type": "worker", "index": 1}]
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in environments] == ["0,2", "1,3"]
    assert all("CUDA_VISIBLE_DEVICES" not in environment for environment in worker_environments(2, 0))
    with pytest.raises(ValueError, match="There are 2 workers, but only 1 GPUs: expected at most one worker per GPU"):
        run_workers(["true"], 2, num_gpus=1)


def test_first_failure_ends_all_workers():
    text = "index = json.loads(os.environ['TF_CONFIG'])['task']['index']\n"
    assert run_workers(script(text + "sys.exit(0)"), 2) == 0
    assert run_workers(script(text + "signal.pause() if index == 0 else sys.exit(3)"), 2) == 3


def test_killed_worker_restarts_all(tmp_path):
    marks = tmp_path / "marks"
    text = f"""
index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
with open({str(marks)!r}, "a") as file:
    file.write(str(index))
    file.flush()
if len(open({str(marks)!r}).read()) < 5:
    os.kill(os.getpid(), 9) if index else signal.pause()
"""
    assert run_workers(script(text), 2) == 0
    assert len(marks.read_text()) >= 5
    always = script("os.kill(os.getpid(), 9)")
    assert run_workers(always, 1) == 128 + 9


ASKED = """
index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
def end(number, _):
    if index == 0:
        time.sleep(1)
        open("saved", "w").close()
    raise SystemExit(128 + number)
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, end)
open(f"ready{index}", "w").close()
signal.pause()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_worker_that_exits_on_a_signal_leaves_the_writer_time_to_save(tmp_path, monkeypatch, number):
    monkeypatch.chdir(tmp_path)

    def ask():
        while not all((tmp_path / f"ready{index}").exists() for index in (0, 1)):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    before = signal.signal(
        number, signal.default_int_handler
    )  # a shell's background jobs ignore SIGINT, and so would we
    try:
        threading.Thread(target=ask).start()
        assert run_workers(script("import time" + ASKED), 2) == 128 + number
    finally:
        signal.signal(number, before)
    assert (tmp_path / "saved").exists()


def test_workers_have_sessions_of_their_own():
    """A terminal sends Ctrl-C to its whole session; workers must receive it once, from `run_workers`."""
    assert run_workers(script("sys.exit(os.getsid(0) != os.getpid())"), 1) == 0


def tf_config(workers, index=0, **task):
    return json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": index, **task}})


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (None, "None lacks a cluster, or a task that is in the cluster"),
        ("{}", "lacks a cluster"),
        (tf_config(["a:1"], type="evaluator"), "lacks a cluster, or a task that is in the cluster"),
        (tf_config(["a:1"], index="x"), "lacks a cluster, or a task that is in the cluster"),
        (tf_config("127.0.0.1:23411"), "does not list the workers"),
        (tf_config([]), "does not list the workers"),
        (tf_config(["a:1", "b"]), "has 'b' instead of host:port of a worker"),
        (tf_config(["a:1", "b:1"], index=2), "has the task index 2; expected 0 to 1, the index of an address"),
        (tf_config(["a:1", "b:1"], index=-1), "has the task index -1"),
    ],
)
def test_wrong_tf_config_raises(monkeypatch, text, fault):
    monkeypatch.setenv("TF_CONFIG", text) if text else monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(ValueError, match=fault) as error:
        make_strategy("multi_worker")
    assert "set it as in" in str(error.value)


def test_taken_port_raises(monkeypatch):
    with socket.create_server(("", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("TF_CONFIG", tf_config([address]))
        with pytest.raises(
            ValueError, match=rf"worker at {address} of TF_CONFIG cannot use its port \(Address already"
        ):
            make_strategy("multi_worker")


def test_workers_wait_for_one_another_and_log_it(caplog):
    caplog.set_level(logging.INFO, "kerasdet")
    addresses = json.loads(worker_environments(2, 0)[0]["TF_CONFIG"])["cluster"]["worker"]
    first = threading.Thread(target=wait_for_workers, args=(addresses[0], addresses), daemon=True)
    first.start()
    while not caplog.messages:
        time.sleep(0.01)
    assert first.is_alive()
    wait_for_workers(addresses[1], addresses)
    with socket.create_server(("", int(addresses[1].split(":")[1]))):  # as TensorFlow's does then
        first.join()
    assert caplog.messages == [f"Worker {a} waits for {b}." for a, b in (addresses, addresses[::-1])]


def test_workers_with_different_settings_raise(monkeypatch):
    gathered = []
    monkeypatch.setattr(checks, "all_gather_object", lambda _, value: [*gathered, json.loads(json.dumps(value))])

    def check(completed_steps=0, options=None, **settings):
        checks.check_same_on_all_workers(None, completed_steps, "run", settings, options)

    def data(*ids):
        nothing = {"boxes": np.zeros((0, 4)), "class_ids": np.zeros(0), "is_crowd": np.zeros(0), "extra_values": None}
        records = [SimpleNamespace(image_id=image_id, path=f"{image_id}.jpg", **nothing) for image_id in ids]
        return SimpleNamespace(records=records, class_names=["cat"], num_classes=1)

    def of_first(value):
        gathered[:] = [value]
        return [value]

    with monkeypatch.context() as patch:
        patch.setattr(checks, "all_gather_object", lambda _, value: of_first(value))
        check(data=data(1, 2), eval_data=None, steps=12, options={"checkpointing": Checkpointing()})
    same = {"checkpointing": Checkpointing()}
    check(data=data(1, 2), eval_data=None, steps=12, options=same)
    with pytest.raises(
        ValueError, match=r"have different values of data: worker 0 has 2 images .*, worker 1 has 3 images"
    ):
        check(data=data(1, 2, 3), eval_data=None, steps=12, options=same)
    with pytest.raises(
        ValueError, match=r"have different values of data: worker 0 has 2 images .*, worker 1 has 2 images"
    ):
        check(data=data(2, 1), eval_data=None, steps=12, options=same)
    with pytest.raises(
        ValueError, match="have different values of eval_data: worker 0 has None, worker 1 has 1 images"
    ):
        check(data=data(1, 2), eval_data=data(3), steps=12, options=same)
    with pytest.raises(ValueError, match="have different values of steps: worker 0 has 12, worker 1 has 8"):
        check(data=data(1, 2), eval_data=None, steps=8, options=same)
    with pytest.raises(ValueError, match=r"checkpoints of different steps, \[0, 4\], in run; expected the same"):
        check(completed_steps=4, data=data(1, 2), eval_data=None, steps=12, options=same)
    for other in (Checkpointing(max_to_keep=5), None):
        with pytest.raises(
            ValueError, match=r"have different values of checkpointing\.max_to_keep: worker 0 has 3, worker 1 has"
        ):
            check(data=data(1, 2), eval_data=None, steps=12, options={"checkpointing": other})
