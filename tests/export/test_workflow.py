import re

import numpy as np
import pytest
import tiny
from kerasdet.export import workflow as shipping


def test_sample_images_are_pictures_of_two_sizes():
    first, second = shipping.sample_images()
    assert first.shape == (480, 640, 3)
    assert second.shape == (500, 333, 3)
    assert min(first.std(), second.std()) > 10


@pytest.mark.slow
def test_a_model_that_finds_nothing_is_compared_below_its_threshold(tmp_path):
    model = tiny.talkative(score_threshold=0.9999)
    said = shipping.ship(model, tmp_path / "model")[1].splitlines()
    assert "Reloaded with TensorFlow alone: 0 detections compared" in said[1]
    match = re.match(
        r"The model finds nothing on these images. The same with a score threshold of 0\.\d+: (\d+) det", said[2]
    )
    assert int(match[1]) > 20
    assert model.score_threshold == 0.9999
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_mismatch_is_an_error(tmp_path, monkeypatch):
    model = tiny.talkative()
    export = shipping.export_saved_model

    def of_another_model(_, *arguments, **options):
        return export(tiny.talkative(seed=1), *arguments, **options)

    monkeypatch.setattr(shipping, "export_saved_model", of_another_model)
    with pytest.raises(RuntimeError, match="differs from the model in boxes"):
        shipping.ship(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_what_was_there_before_stays(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        shipping.ship(tiny.talkative(), tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_the_copy_with_another_threshold_is_the_model(rng):
    model = tiny.talkative()
    copy = shipping._with_threshold(model, 0.9)
    image = rng.integers(0, 256, (60, 80, 3), np.uint8)
    ours, theirs = model.detect(image), copy.detect(image)
    assert copy.score_threshold == 0.9
    assert 0 < theirs["valid"][0] < ours["valid"][0]
    np.testing.assert_allclose(theirs["boxes"][0, 0], ours["boxes"][0, 0], atol=1e-4)
