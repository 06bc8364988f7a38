"""How much of a device's arithmetic training uses: FLOPs of a step, the arithmetic, its peak, and MFU."""

import dataclasses
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from score_st import networks
from score_st.model import DiffusionModel
from score_st.planning import tpu

# Float32 products by JAX's default matmul precision: on GPUs in TF32 unless it is the highest, on TPUs in one, three
# or six passes of bfloat16.
LOW, HIGH, HIGHEST = (
    ("default", "fastest", "bfloat16"),
    ("high", "tensorfloat32", "bfloat16_3x"),
    ("highest", "float32"),
)
FLOAT32 = {
    "gpu": dict.fromkeys((*LOW, *HIGH), "tensorfloat32") | dict.fromkeys(HIGHEST, "float32"),
    "tpu": dict.fromkeys(LOW, "bfloat16") | dict.fromkeys(HIGH, "bfloat16_3x") | dict.fromkeys(HIGHEST, "bfloat16_6x"),
}
PASSES = {"bfloat16_3x": 3, "bfloat16_6x": 6}

Peaks = Mapping[str, float]  # FLOP/s by arithmetic: bfloat16, tensorfloat32, float32


def _gpu(bfloat16: float, tensorfloat32: float, float32: float) -> Peaks:
    return {"bfloat16": bfloat16 * 1e12, "tensorfloat32": tensorfloat32 * 1e12, "float32": float32 * 1e12}


def _tpu(name: str) -> Peaks:
    return {"bfloat16": tpu.CHIPS[name].flops}


# By a pattern of `jax.Device.device_kind`. Those of GPUs are for dense products, from NVIDIA's data sheets.
CHIPS: dict[str, Peaks] = {
    "TPU v4": _tpu("v4"),
    "TPU (v5 lite|v5e)": _tpu("v5e"),
    "TPU v5p?": _tpu("v5p"),
    "TPU (v6 lite|v6e)": _tpu("v6e"),
    "NVIDIA H100 80GB HBM3|NVIDIA H200": _gpu(989.4, 494.7, 66.9),  # SXM; NVL has another peak
    "NVIDIA H100 PCIe": _gpu(756, 378, 51),
    r"(NVIDIA )?A100-(SXM|PCI).*|NVIDIA A100 80GB PCIe": _gpu(312, 156, 19.5),
}


def forward_flops(model: DiffusionModel, images: int) -> float:
    """Returns the FLOPs of a forward pass of the network.

    They are counted in the program before it is optimized; nothing is compiled. The program is lowered for a CPU,
    since JAX counts for no other platform.

    Raises:
      RuntimeError: JAX has no CPU backend here (JAX_PLATFORMS).
    """
    cpu = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=cpu)
    x, time_cond = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((images, *model.image_shape), (images,)))
    network = jax.jit(lambda params, x, time_cond: model.apply(params)(x, time_cond, None))
    cost: Any = network.lower(*jax.tree.map(place, (model.abstract_params, x, time_cond))).cost_analysis()
    return cost["flops"]


def arithmetic(dtype: Any, platform: str, precision: str | None = None) -> str:
    """Returns the arithmetic of matrix products and convolutions.

    Args:
      dtype: of their inputs.
      platform: cpu, gpu or tpu.
      precision: JAX's default matmul precision, see `FLOAT32`.

    Returns:
      float32, tensorfloat32, bfloat16, bfloat16_3x, bfloat16_6x, or the precision itself if it is another one.
    """
    if jnp.dtype(dtype) != jnp.float32:
        return jnp.dtype(dtype).name
    precision = precision or "default"
    return FLOAT32[platform].get(precision, precision) if platform in FLOAT32 else "float32"


def peak(device_kind: str, arithmetic: str, chips: Mapping[str, Peaks] = CHIPS) -> float | None:
    """Returns the peak FLOP/s of a device, or None if it is not known.

    Args:
      device_kind: as `jax.Device` has it.
      arithmetic: see `arithmetic`; in n passes of bfloat16, the peak is an nth of that of bfloat16.
      chips: peaks by a pattern of the kind of device.
    """
    passes = PASSES.get(arithmetic, 1)
    for pattern, peaks in chips.items():
        if re.fullmatch(pattern, device_kind):
            flops = peaks.get("bfloat16" if passes > 1 else arithmetic)
            return flops and flops / passes
    return None


@dataclasses.dataclass(frozen=True)
class Utilization:
    """What the log says of the arithmetic of training.

    Attributes:
      flops: of a step, on one device: three times those of its forward pass.
      arithmetic: see `arithmetic`.
      peak: FLOP/s of a device, if it is known.
    """

    flops: float
    arithmetic: str
    peak: float | None

    def __call__(self, steps_per_s: float) -> dict[str, float | str]:
        """Returns tflops_per_s of a device, the arithmetic and, if the peak is known, the MFU."""
        figures: dict[str, float | str] = {"tflops_per_s": self.flops * steps_per_s / 1e12}
        if self.peak:
            figures["mfu"] = self.flops * steps_per_s / self.peak
        return figures | {"arithmetic": self.arithmetic}


def of_training(
    model: DiffusionModel, batch_size: int, mesh: Mesh, chips: Mapping[str, Peaks] = CHIPS
) -> Callable[[float], Mapping[str, float | str]]:
    """Returns the utilization of a device in training, with the present default matmul precision.

    Where the FLOPs can't be counted, that is said on stderr, and there are no figures.

    Args:
      model: with its network in the arithmetic of training.
      batch_size: images of a step on all devices.
      mesh: the devices.
      chips: see `peak`.
    """
    device, precision = mesh.devices.flat[0], jax.config.values["jax_default_matmul_precision"]
    name = arithmetic(networks.arithmetic_dtype(model.network), device.platform, precision)
    try:
        flops = 3 * forward_flops(model, batch_size // mesh.size)
    except Exception as error:  # a network of the user's, or JAX_PLATFORMS without cpu
        if jax.process_index() == 0:
            print(f"note: no tflops_per_s in the log: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return lambda steps_per_s: {}
    return Utilization(flops, name, peak(device.device_kind, name, chips))
