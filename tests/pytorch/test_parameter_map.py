"""The parameters of NCSN++ as PyTorch has them, and the settings that would fit a file."""

import chex
import numpy as np
import pytest
from support.official import CIFAR10, converted, official_content, overrides

from score_st import config
from score_st.config import ConfigError
from score_st.pytorch import parameter_map


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(model__nf=8), "--config.model.nf=4 would fit"),
        (dict(model__num_res_blocks=2), "--config.model.num_res_blocks=1 would fit"),
        (dict(model__nf=8, model__num_res_blocks=2), "--config.model.nf=4 --config.model.num_res_blocks=1 would fit"),
        (dict(data__num_channels=1), "--config.data.num_channels=3 would fit"),
        (dict(model__embedding_type="fourier"), "--config.model.embedding_type=positional would fit"),
        (dict(model__ch_mult=(1, 1)), "--config.model.ch_mult=(1,2) would fit"),
    ],
    ids=str,
)
def test_the_message_names_the_setting_that_would_fit(changes, message):
    settings = config.load(CIFAR10, overrides(**changes))
    tensors = {name.removeprefix("module."): a.shape for name, a in official_content()["model"].items()}
    del tensors["sigmas"]
    with pytest.raises(ConfigError, match="; ") as error:
        parameter_map.check(settings, parameter_map.shapes_of(settings), tensors)
    assert message in str(error.value)


def test_to_flax_and_back():
    content = official_content()
    params = converted(content).params
    slots = parameter_map.layout(params)
    tensors = parameter_map.from_flax(slots, params)
    del content["model"]["module.sigmas"]
    for slot, tensor, (name, expected) in zip(slots, tensors, content["model"].items(), strict=True):
        assert f"module.{slot.name}" == name
        np.testing.assert_array_equal(tensor, expected)
    chex.assert_trees_all_equal(parameter_map.to_flax(slots, tensors, params), params)
