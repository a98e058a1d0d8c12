"""Two devices, and two processes, against one with the whole batch."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

from kerasdet.training.workers import worker_environments

RUN = Path(__file__).with_name("replica_run.py")
ONE_PROCESS = [{}]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "data"
    return tiny.shapes_data(folder, num_images=7, seed=3, image_size=(100, 130)).annotations


def run(folder, strategy, way, precision, data):
    """What each process wrote down."""
    environments = worker_environments(2, 0) if strategy == "multi_worker" else ONE_PROCESS
    outputs = [folder / f"{strategy}_{precision}_{number}.npz" for number in range(len(environments))]
    shared = folder / f"{strategy}_{precision}"
    processes = []
    for number, environment in enumerate(environments):
        common = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", **environment}
        command = [sys.executable, str(RUN), strategy, way, precision, str(data), str(outputs[number]), str(shared)]
        processes.append(subprocess.Popen(command, env=common, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors[-3000:]
    return [dict(np.load(output)) for output in outputs]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, data):
    made = {}

    def of(precision):
        if precision not in made:
            [made[precision]] = run(tmp_path_factory.mktemp("alone"), "one_device", "train", precision, data)
        return made[precision]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("strategy", ["mirrored", "multi_worker"])
def test_two_make_the_steps_of_one_and_measure_as_it_does(tmp_path, data, alone, strategy, precision):
    way = "fit" if (strategy, precision) == ("mirrored", "float32") else "train"
    tolerance = {"float32": 1e-5, "float64": 1e-9}[precision]
    expected = alone(precision)
    assert expected["retinanet moved"] > 1e-3
    assert expected["mask_rcnn moved"] > 1e-3
    for found in run(tmp_path, strategy, way, precision, data):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=tolerance, atol=tolerance, err_msg=name)
