import pickle

import numpy as np
import pytest

from kerasdet.checkpoints import read
from kerasdet.checkpoints.state_dict import take_model
from kerasdet.errors import UserError

STATE = {"conv1.weight": np.float32([[1]]), "layer1.0.conv1.weight": np.float32([[2]])}
OTHER = {name: -value for name, value in STATE.items()}
NEEDED = ("layer1.0.conv1.weight", "conv1.weight")


def under(prefix, state=STATE):
    return {f"{prefix}{name}": value for name, value in state.items()}


@pytest.fixture
def read_object(tmp_path):
    def reader(contents, **arguments):
        path = tmp_path / "file.pth"
        path.write_bytes(pickle.dumps(contents))
        return dict(read(path, **arguments))

    return reader


WRAPPED = {
    "torch.compile": under("_orig_mod."),
    "compile and DDP": {"model": under("_orig_mod.module.")},
    "DDP and compile": under("module._orig_mod."),
    "compiled part": {"conv1.weight": STATE["conv1.weight"], "layer1.0._orig_mod.conv1.weight": np.float32([[2]])},
    "FSDP": under("_fsdp_wrapped_module."),
    "Lightning": {"state_dict": under("model."), "hyper_parameters": {"lr": 0.1}, "epoch": 3},
    "Lightning's net": {"state_dict": under("net.")},
    "only means": {"model_ema": STATE},
    "means of AveragedModel": {"n_averaged": np.array(5), **under("module.")},
    "means with a decay": {"ema": {"module": STATE, "decay": 0.99}},
    "net": {"net": STATE, "acc": 0.9},
    "weights": {"weights": STATE},
    "module": {"module": STATE},
    "entry of another name": {"detector": STATE, "optimizer": {"momentum": np.zeros(3)}, "epoch": 1},
    "configuration beside it": {"model": {"depth": 18}, "state_dict": STATE},
    "tensors beside a configuration": {"model": {"depth": 18}, **STATE},
    "empty means": {"model": STATE, "model_ema": {"decay": 0.9}},
    "prefix of means": under("ema_model."),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_wrappers_are_removed(read_object, case):
    state = read_object(WRAPPED[case])
    assert state == STATE


AMBIGUOUS = {
    "model and model_ema": {"model": STATE, "model_ema": {**under("module.", OTHER), "n_averaged": np.array(5)}},
    "state_dict and state_dict_ema": {"state_dict": STATE, "state_dict_ema": OTHER},
    "student and teacher": {"student": STATE, "teacher": OTHER},
    "params and params_ema": {"params": STATE, "params_ema": OTHER},
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_two_sets_of_weights_need_a_name(read_object, case):
    first, second = case.split(" and ")
    message = rf"file\.pth: the file holds several sets of weights, {case}\. Expected one set\. Choose one with --"
    with pytest.raises(UserError, match=message):
        read_object(AMBIGUOUS[case])
    assert read_object(AMBIGUOUS[case], weights=first) == STATE
    assert read_object(AMBIGUOUS[case], weights=second) == OTHER


def test_prefix_chooses_among_several(read_object):
    contents = {"state_dict": {**under("module.encoder_q."), **under("module.encoder_k.", OTHER)}}
    assert read_object(contents, weights="encoder_k") == OTHER
    assert read_object(contents, weights="encoder_q") == read_object(contents, weights="encoder_q.") == STATE
    with pytest.raises(UserError, match=r"no entry or name prefix 'encoder', which .* its names start with module\."):
        read_object(contents, weights="encoder")


def test_names_that_differ_only_by_wrappers_raise(read_object):
    with pytest.raises(
        UserError, match=r"has module\.conv1\.weight and _orig_mod\.module\.conv1\.weight, whose names are equal"
    ):
        read_object({**under("module."), **under("_orig_mod.module.", OTHER)})


def test_model_is_taken_out_of_a_larger_one(caplog):
    assert take_model(STATE, NEEDED) == STATE
    assert take_model({**STATE, "fc.weight": 3}, NEEDED) == {**STATE, "fc.weight": 3}
    assert take_model(under("backbone."), NEEDED) == STATE
    assert not caplog.messages
    assert take_model({**under("net."), "criterion.weight": 3}, NEEDED) == STATE
    left_out = "The checkpoint's tensors with the prefix net. are used; these tensors are left out: criterion.weight."
    assert caplog.messages == [left_out]
    assert take_model({"x.conv1.weight": 3}, NEEDED) == {"x.conv1.weight": 3}


def test_two_models_in_a_larger_one_need_a_name():
    both = {**under("model."), **under("ema_model.", OTHER)}
    with pytest.raises(UserError, match="several sets of weights, ema_model and model"):
        take_model(both, NEEDED)
