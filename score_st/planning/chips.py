"""Peak arithmetic of accelerators, by the name that JAX has for them, and the arithmetic that a program uses."""

from collections.abc import Mapping

from score_st.planning.tpu import CHIPS

BFLOAT16, TF32, FLOAT32 = "bfloat16", "tf32", "float32"

Peaks = Mapping[str, Mapping[str, float]]  # by part of a device kind: FLOP/s by arithmetic

# JAX's names of TPUs; of two that fit, the first counts
_TPUS = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v6": "v6e"}
# dense products, without sparsity, from NVIDIA's data sheets; "H100" and "A100" without a suffix are the SXM modules
PEAKS: Peaks = {
    "H200": {BFLOAT16: 989.4e12, TF32: 494.7e12, FLOAT32: 66.9e12},
    "H100 NVL": {BFLOAT16: 835.5e12, TF32: 417.5e12, FLOAT32: 60e12},
    "H100 PCIe": {BFLOAT16: 756.5e12, TF32: 378e12, FLOAT32: 51.2e12},
    "H100": {BFLOAT16: 989.4e12, TF32: 494.7e12, FLOAT32: 66.9e12},
    "A100": {BFLOAT16: 312e12, TF32: 156e12, FLOAT32: 19.5e12},
    # a product of float32 numbers takes six passes in bfloat16
    **{name: {BFLOAT16: CHIPS[chip].flops, FLOAT32: CHIPS[chip].flops / 6} for name, chip in _TPUS.items()},
}


def arithmetic(platform: str, dtype: str, precision: str | None = None) -> str:
    """Returns the arithmetic in which a platform computes products: "bfloat16", "tf32" or "float32".

    Args:
      platform: "cpu", "gpu" or "tpu".
      dtype: training.dtype, the type of the operands.
      precision: jax_default_matmul_precision; None is JAX's default, in which a GPU takes TF32 for float32 numbers
        and a TPU bfloat16.
    """
    if dtype == BFLOAT16:
        return BFLOAT16
    if platform == "cpu" or precision in ("highest", "float32"):
        return FLOAT32
    return BFLOAT16 if platform == "tpu" else TF32


def peak(device_kind: str, arithmetic: str, peaks: Peaks = PEAKS) -> float | None:
    """Returns the peak FLOP/s of one device, or None if the chip or its arithmetic is not in the table.

    Args:
      device_kind: as JAX has it: "NVIDIA H100 80GB HBM3", "TPU v5 lite".
      arithmetic: one of those that `arithmetic` returns.
      peaks: the table; the first name that is part of `device_kind` counts.
    """
    return next((by_type.get(arithmetic) for name, by_type in peaks.items() if name in device_kind), None)
