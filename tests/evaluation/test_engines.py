"""Compares both engines with pycocotools as its authors call it, to the last bit."""

import copy
import json
import sys

import numpy as np
import pytest
from conftest import shared
from evaluation.random_cases import random_case
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from kerasdet import cli
from kerasdet.errors import UserError
from kerasdet.evaluation import evaluate_coco, evaluate_proposals
from kerasdet.evaluation.engines import ENGINES


class IgnoringDifficult(COCOeval):
    """Ignores difficult objects after COCOeval has set `ignore` to `iscrowd`."""

    def _prepare(self):
        super()._prepare()
        for annotations in self._gts.values():
            for annotation in annotations:
                annotation["ignore"] = annotation["ignore"] or annotation.get("difficult", 0)


def reference(truth, results, iou_type, image_ids=None):
    annotated = copy.deepcopy({**truth, "annotations": truth["annotations"]})
    for annotation in annotated["annotations"]:
        if iou_type == "keypoints":
            annotation["num_keypoints"] = sum(v > 0 for v in annotation["keypoints"][2::3])
    gt, dt = COCO(), COCO()
    gt.dataset = annotated
    found = [{**entry, "id": number, "iscrowd": 0} for number, entry in enumerate(results, 1)]
    if iou_type == "keypoints":  # loadRes: the extent of the points
        for entry in found:
            entry["area"] = float(np.ptp(entry["keypoints"][0::3]) * np.ptp(entry["keypoints"][1::3]))
    dt.dataset = {**truth, "annotations": found}
    gt.createIndex()
    dt.createIndex()
    evaluation = IgnoringDifficult(gt, dt, iou_type)
    if image_ids:
        evaluation.params.imgIds = image_ids
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return np.where(evaluation.stats < 0, np.nan, evaluation.stats)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("iou_type", ["bbox", "segm", "keypoints"])
def test_engines_equal_pycocotools_to_the_last_bit(engine, iou_type):
    for seed in range(6):
        truth, results = random_case(seed, iou_type, in_bytes=seed % 2 == 1)
        image_ids = [image["id"] for image in truth["images"]][:: 2 if seed == 3 else 1]
        if seed == 4:
            results = []
        if seed == 5 and iou_type != "segm":
            truth["annotations"] = []
        metrics = evaluate_coco(truth, results, iou_type, image_ids, engine=engine)
        expected = reference(truth, results, iou_type, image_ids)
        np.testing.assert_array_equal(list(metrics.summary.values()), expected, err_msg=f"seed {seed}")


def test_engines_agree_on_proposals():
    for seed in range(4):
        truth, results = random_case(seed)
        first, second = (evaluate_proposals(truth, results, engine=engine).summary for engine in ENGINES)
        np.testing.assert_array_equal(list(first.values()), list(second.values()))
        assert first["AR100"] > 0.2


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_engines_agree_on_published_results(iou_type):
    folder = shared("data/cocoapi_eval")
    truth = folder / "instances_val2014_100.json"
    results = folder / f"instances_val2014_fake{iou_type}100_results.json"
    first, second = (evaluate_coco(truth, results, iou_type, engine=engine) for engine in ENGINES)
    assert list(first.summary.values()) == list(second.summary.values())
    np.testing.assert_array_equal(list(first.per_class.values()), list(second.per_class.values()))


def test_command_takes_the_engine(tmp_path, capsys, monkeypatch):
    truth, results = random_case(0)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps(results))
    words = ["eval", "--annotations", str(tmp_path / "truth.json"), "--detections", str(tmp_path / "results.json")]
    tables = []
    for engine in ENGINES:
        assert cli.main([*words, "--engine", engine]) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1] and "AP75" in tables[0]
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    assert cli.main(words) == 2
    assert "COCO's rules also work without it, with the engine pycocotools" in capsys.readouterr().err
    assert cli.main([*words, "--engine", "pycocotools"]) == 0


def test_unknown_engine_is_an_error():
    with pytest.raises(UserError, match="engine is 'fast': choose one of hotcoco, pycocotools"):
        evaluate_coco(*random_case(0), engine="fast")
