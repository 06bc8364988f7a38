"""FLOPs of a network by hand, the arithmetic that is used, peaks and MFU."""

import dataclasses
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from support.commands import SMALL

from score_st import config
from score_st.config import load
from score_st.model import DiffusionModel
from score_st.planning import tpu, utilization


def taps(size: int) -> int:
    """Pairs of output and input pixels of a 3x3 convolution with padding: 3 in the middle, 2 at both ends, squared."""
    return (3 * size - 2) ** 2


class Convolutions(nn.Module):
    """Two convolutions and a scaling: 1 to 8 channels, 8 to 1."""

    @nn.compact
    def __call__(self, x, time_cond, train=False, log_time_cond=None):
        h = nn.Conv(8, (3, 3), use_bias=False)(x) * time_cond[:, None, None, None]
        return nn.Conv(x.shape[-1], (3, 3), use_bias=False)(h)


def test_flops_of_convolutions():
    """Two for each product of a weight and a pixel; one for each number that is scaled."""
    model = dataclasses.replace(DiffusionModel.from_config(load(SMALL)), network=Convolutions())
    by_hand = 2 * taps(8) * 8 + 8 * 8 * 8 + 2 * taps(8) * 8
    for images in (1, 5):
        assert utilization.forward_flops(model, images) == images * by_hand


def test_the_digits_network_is_counted_quickly():
    """Compiling it takes ten times as long."""
    model = DiffusionModel.from_config(config.load("vp/DIGITS/ddpmpp_nll_st"))
    began = time.process_time()
    assert 30e6 < utilization.forward_flops(model, 1) < 35e6
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    "dtype, platform, precision, expected",
    [
        ("float32", "cpu", None, "float32"),
        ("float32", "gpu", None, "tensorfloat32"),
        ("float32", "gpu", "high", "tensorfloat32"),
        ("float32", "gpu", "highest", "float32"),
        ("float32", "tpu", None, "bfloat16"),
        ("float32", "tpu", "high", "bfloat16_3x"),
        ("float32", "tpu", "float32", "bfloat16_6x"),
        ("float32", "tpu", "F16_F16_F32", "F16_F16_F32"),
        ("bfloat16", "gpu", "highest", "bfloat16"),
        ("bfloat16", "tpu", None, "bfloat16"),
    ],
)
def test_arithmetic(dtype, platform, precision, expected):
    assert utilization.arithmetic(jnp.dtype(dtype), platform, precision) == expected


@pytest.mark.parametrize(
    "kind, arithmetic, tflops",
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4),
        ("NVIDIA H100 80GB HBM3", "tensorfloat32", 494.7),
        ("NVIDIA H200", "float32", 66.9),
        ("NVIDIA H100 PCIe", "bfloat16", 756),
        ("NVIDIA A100-SXM4-40GB", "bfloat16", 312),
        ("NVIDIA A100 80GB PCIe", "tensorfloat32", 156),
        ("A100-SXM4-40GB", "float32", 19.5),
        ("TPU v4", "bfloat16", 275),
        ("TPU v5 lite", "bfloat16", 197),
        ("TPU v5p", "bfloat16_3x", 459 / 3),
        ("TPU v6 lite", "bfloat16_6x", 918 / 6),
        ("TPU v5", "F16_F16_F32", None),
        ("NVIDIA H100 NVL", "bfloat16", None),
        ("NVIDIA GeForce RTX 4090", "bfloat16", None),
        ("cpu", "float32", None),
    ],
)
def test_peaks(kind, arithmetic, tflops):
    peak = utilization.peak(kind, arithmetic)
    assert peak == (tflops and pytest.approx(tflops * 1e12))


def test_every_tpu_of_the_planner_has_a_peak():
    peaks = [peaks["bfloat16"] for pattern, peaks in utilization.CHIPS.items() if pattern.startswith("TPU")]
    assert peaks == [chip.flops for chip in tpu.CHIPS.values()]


def test_figures_of_a_speed():
    """A step of 6 TFLOP, three times in 2 s, is 9 TFLOP/s, of 45."""
    known = utilization.Utilization(6e12, "bfloat16", 45e12)
    assert known(1.5) == {"tflops_per_s": 9.0, "mfu": pytest.approx(0.2), "arithmetic": "bfloat16"}
    unknown = dataclasses.replace(known, peak=None)
    assert unknown(1.5) == {"tflops_per_s": 9.0, "arithmetic": "bfloat16"}


def test_training_is_three_forward_passes_of_the_images_of_a_device():
    model = DiffusionModel.from_config(load(SMALL))
    mesh = jax.sharding.Mesh(jax.devices()[:4], ("data",))
    used = utilization.of_training(model, 16, mesh, {"cpu": {"float32": 1e12}})
    assert used.flops == 3 * utilization.forward_flops(model, 4) and used.peak == 1e12


class Uncountable(Convolutions):
    """A network that refuses its input."""

    @nn.compact
    def __call__(self, x, time_cond, train=False, log_time_cond=None):
        raise ValueError("no such\nimages")


def test_what_cannot_be_counted_is_said(one_device, capsys):
    model = dataclasses.replace(DiffusionModel.from_config(load(SMALL)), network=Uncountable())
    assert utilization.of_training(model, 16, one_device)(2.0) == {}
    assert capsys.readouterr().err == "note: no tflops_per_s in the log: no such images\n"
