"""Networks of EDM: read as they are saved, without running anything; what is damaged or hostile is refused."""

import os
from pathlib import Path

import numpy as np
import pytest
from support import foreign

from score_st.config import ConfigError
from score_st.pytorch import edm, imported


def test_a_snapshot_is_read(tmp_path):
    """Its tensors, its options, and nothing of its source, which would leave a file."""
    target = tmp_path / "touched"
    source = f"open({str(target)!r}, 'w')"
    network = imported.read(foreign.write_edm(tmp_path / "a.pkl", foreign.edm_tree("edm", source=source)))
    expected = foreign.tensors("edm")
    assert network.tensors.keys() == expected.keys() and not target.exists()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(network.tensors[name], tensor)
    assert network.notes == ("the network was trained on 'images.zip'",)
    config = imported.configuration(network, {"sampling.steps": "5"})
    assert (config.model.num_classes, config.model.sigma_max, config.model.nf) == (3, 80.0, 8)
    assert (config.model.parametrization, config.data.dequantization) == ("edm", "lossless")
    assert config.sampling.steps == 5 and config.model.ch_mult == (1, 2)


def test_defaults_need_not_be_in_the_file(tmp_path):
    tree = foreign.edm_tree("vp")
    options = dict(img_resolution=32, in_channels=3, out_channels=3, label_dim=0)
    inner = foreign.module("SongUNet", {}, _init_args=(), _init_kwargs=options)
    tree["ema"].arguments[0]["state"]["_modules"]["model"] = inner
    config = imported.configuration(imported.read(foreign.write_edm(tmp_path / "a.pkl", tree)), {})
    model = config.model
    assert (model.nf, model.ch_mult, model.num_res_blocks, model.attn_resolutions) == (128, (1, 2, 2, 2), 4, (16,))
    assert (model.dropout, model.embedding_type, model.beta_max) == (0.1, "positional", 20.0)


def without(values: dict, name: str) -> dict:
    return {key: value for key, value in values.items() if key != name}


WEIGHT = "dec.8x8_block1.conv0.weight"
UNFIT = {
    "is DhariwalUNet around a network; only EDM's": dict(network="DhariwalUNet"),
    "is iDDPMPrecond; only EDM's EDMPrecond, VPPrecond": dict(wrapper="iDDPMPrecond"),
    "encoder_type=skip; only standard and residual": dict(options={"encoder_type": "skip"}),
    "channel_mult_noise=3; only 1": dict(options={"channel_mult_noise": 3}),
    "the option 'surprise', which is unknown": dict(options={"surprise": 1}),
    "should be whole numbers": dict(options={"img_resolution": "8"}),
    "an option dropout that is neither a number": dict(options={"dropout": 2**40}),
    "an option embedding_type that is neither": dict(options={"embedding_type": [[1]]}),
    "sigma_min=0: should be above 0": dict(kind="ve", attributes={"sigma_min": 0}),
    "M should be a finite number": dict(attributes={"M": "1000"}),
    "VPPrecond has M=999": dict(attributes={"M": 999}),
    f"{WEIGHT} is missing, which a SongUNet": dict(values=without(foreign.tensors("vp"), WEIGHT)),
    "more.bias is surplus": dict(values=foreign.tensors("vp") | {"more.bias": np.zeros(3, np.float32)}),
    "should have finite": dict(values=foreign.tensors("vp") | {"map_layer0.bias": np.full(32, np.nan, np.float32)}),
    "should be a tensor of shape [32]": dict(
        values=foreign.tensors("vp") | {"map_layer0.bias": np.zeros(31, np.float32)}
    ),
}


@pytest.mark.parametrize("message", UNFIT)
def test_what_can_not_be_converted(tmp_path, message):
    from score_st.model import DiffusionModel

    path = foreign.write_edm(tmp_path / "a.pkl", foreign.edm_tree(**{"kind": "vp"} | UNFIT[message]))
    with pytest.raises(ConfigError) as error:
        network = imported.read(path)
        config = imported.configuration(network, {})
        imported.training_state(network, config, DiffusionModel.from_config(config))
    assert message in str(error.value) and "\n" not in str(error.value)


def hostile(target: Path) -> dict[str, bytes]:
    """Pickles, by part of the message that refuses them."""
    command = f"touch {target}"
    calls = lambda *call: b"\x80\x04" + foreign.pickled({"ema": foreign.Call(*call)}) + b"."
    storage = lambda content: calls("torch.storage", "_load_from_bytes", (content,))
    array = np.ones(4, np.float32)
    return {
        "asks for posix.system": calls("posix", "system", (command,)),
        "asks for builtins.exec": calls("builtins", "exec", (command,)),
        "asks for torch.load": calls("torch", "load", (command,)),
        "has no class or no state": calls(*foreign.persistent("A", {})[:2], ({"class_name": "A"},)),
        "makes an object with arguments": calls("torch.nn.modules.container", "ModuleDict", (1,), {}),
        "calls something that is not a function": b"\x80\x04}}R.",
        "the data of a tensor are not bytes": storage("text"),
        "neither since PyTorch 1.6 nor before": storage(b"\x80\x02K\x01."),
        "with something after its end": storage(foreign.storage_file(array) + b"."),
        "and does not": storage(foreign.storage_file(array)[:-1]),
        "more instructions than 1048576": b"\x80\x04" + b"N" * (2**20 + 1) + b".",
        "a pickle with something after its end": b"\x80\x04}.}.",
        "has no 'ema'": b"\x80\x04}.",
        "keys are neither text nor numbers": b"\x80\x04" + laughs(40) + b"}h\x28K\x01s.",
        "an OrderedDict of something else than pairs": calls("collections", "OrderedDict", (5,)),
        "nest deeper": b"\x80\x04" + foreign.pickled({"ema": nested(9)}) + b".",
    }


def laughs(levels: int) -> bytes:
    """A tuple of ten references to a tuple of ten references to ..., whose hash would take forever."""
    text = b"(K\x01t\x94"
    for i in range(levels):
        text += b"(" + (b"h" + bytes([i])) * 10 + b"t\x94"
    return text


def nested(levels: int) -> foreign.Call:
    """A wrapper of a network whose modules are one inside the other."""
    name = ".".join(["enc"] + ["a"] * levels + ["weight"])
    tree = foreign.edm_tree("vp", {name: np.ones(1, np.float32)})
    return tree["ema"]


@pytest.mark.parametrize("message", hostile(Path("x")))
def test_hostile_files_run_nothing(tmp_path, message):
    path, target = tmp_path / "a.pkl", tmp_path / "touched"
    path.write_bytes(hostile(target)[message])
    with pytest.raises(ConfigError) as error:
        edm.read(path)
    assert message in str(error.value) and "\n" not in str(error.value) and str(path) in str(error.value)
    assert not target.exists()


def test_cut_files_are_refused(tmp_path):
    """Wherever they end, and wherever a part is missing."""
    path = foreign.write_edm(tmp_path / "a.pkl", foreign.edm_tree("vp"))
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(2, len(content), 40):
        for broken in (content[:place], content[:place] + content[place + 1 + int(rng.integers(99)) :]):
            path.write_bytes(broken)
            with pytest.raises(ConfigError) as error:
                network = edm.read(path)
                expected = foreign.tensors("vp")
                same = network.tensors.keys() == expected.keys()
                if same and all(np.array_equal(network.tensors[name], expected[name]) for name in expected):
                    raise ConfigError(f"{path}: the cut took nothing of the network")  # of what is not read
                raise AssertionError(f"a cut at {place} was not noticed")
            assert str(path) in str(error.value)


def test_other_files_are_none_of_edm(tmp_path):
    assert not edm.is_network(foreign.FIXTURES / "official_legacy.pth")
    assert not edm.is_network(tmp_path / "none") and not edm.is_network(tmp_path)
    assert os.path.exists(foreign.FIXTURES / "official.pth") and not edm.is_network(foreign.FIXTURES / "official.pth")
