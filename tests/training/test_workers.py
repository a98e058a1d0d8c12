import json
import sys

import pytest

from kerasdet.training.workers import run_workers, worker_environments


def script(text):
    return [sys.executable, "-c", "import json, os, sys, signal\n" + text]


def test_workers_know_one_another_and_share_the_gpus(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    environments = worker_environments(2, 4)
    configs = [json.loads(environment["TF_CONFIG"]) for environment in environments]
    assert configs[0]["cluster"] == configs[1]["cluster"]
    assert len(set(configs[0]["cluster"]["worker"])) == 2
    assert [config["task"] for config in configs] == [{"type": "worker", "index": 0}, {"type": "worker", "index": 1}]
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in environments] == ["0,2", "1,3"]
    assert all("CUDA_VISIBLE_DEVICES" not in environment for environment in worker_environments(2, 0))
    with pytest.raises(ValueError, match="There are 1 GPUs for 2 workers: give --workers 1"):
        run_workers(["true"], 2, num_gpus=1)


def test_the_first_failure_ends_all():
    text = "index = json.loads(os.environ['TF_CONFIG'])['task']['index']\n"
    assert run_workers(script(text + "sys.exit(0)"), 2) == 0
    assert run_workers(script(text + "signal.pause() if index == 0 else sys.exit(3)"), 2) == 3


def test_a_killed_worker_has_all_started_again(tmp_path):
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
