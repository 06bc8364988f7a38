"""TPU chips, their slices, and the roofline estimate of the time of a step."""

import dataclasses
import importlib.util
import math
import os
from typing import Any

from score_st.config import ConfigError

FORMULA = (
    "step = max(FLOPs / peak, bytes / bandwidth) + sum over collectives of ring x bytes / (links x speed of a link), "
    "where ring = 2 (n-1)/n for all-reduce and (n-1)/n otherwise, over n chips; "
    "MFU = 3 x FLOPs of a forward pass / (step x peak)"
)
# libtpu then queries no metadata server, takes no lock and prints nothing
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_MIN_LOG_LEVEL": "3",
}


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of TPU chip.

    Arithmetic and memory are from docs.cloud.google.com/tpu/docs/v4, v5e, v5p and v6e, links from
    jax-ml.github.io/scaling-book.

    Attributes:
      hbm: GiB; the runtime keeps some of them.
      flops: peak bfloat16 FLOP/s; float32 products are bfloat16 too unless a higher precision is set.
      bandwidth: of HBM, bytes/s.
      link: bytes/s in one direction.
      ring: an axis of the topology whose length is a multiple of this is closed to a ring.
      shapes: available slices.
      options: for libtpu; v4 and v5p have two cores per chip, which form one device.
    """

    hbm: float
    flops: float
    bandwidth: float
    link: float
    ring: int
    shapes: str
    options: dict[str, str] = dataclasses.field(default_factory=dict)


FLAT = "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16"
CUBIC = "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16"
MEGACORE = {"chip_config_name": "megacore"}
CHIPS = {
    "v4": Chip(32, 275e12, 1.2e12, 4.5e10, 4, CUBIC, MEGACORE),
    "v5e": Chip(16, 197e12, 0.819e12, 4.5e10, 16, FLAT),
    "v5p": Chip(95, 459e12, 2.765e12, 9e10, 4, CUBIC, MEGACORE),
    "v6e": Chip(32, 918e12, 1.638e12, 9e10, 16, FLAT),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice of chips; its name is that of `CHIPS` and the shape: v5e:4x4."""

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def links(self) -> int:
        """The number of links of a chip at a corner; both directions of a ring count."""
        return sum((n > 1) * (1 + (n % self.chip.ring == 0)) for n in self.shape)

    def devices(self) -> list:
        """Returns descriptions of the chips, for compilation only.

        Raises:
          ConfigError: libtpu is not installed.
        """
        if importlib.util.find_spec("libtpu") is None:
            raise ConfigError("score_st.plan needs the TPU compiler: pip install -e '.[plan]'")
        from jax.experimental import topologies

        os.environ.update(ENVIRONMENT)
        host = {"chips_per_host_bounds": (1, 1, 1)} if math.prod(self.shape) == 1 else {}
        return topologies.get_topology_desc(self.name, platform="tpu", **host, **self.chip.options).devices


def topology(name: str) -> Topology:
    """Returns the topology of a name such as v5e:4x4.

    Raises:
      ConfigError: it is unknown; the message lists the known ones.
    """
    known = {f"{kind}:{shape}": (chip, shape) for kind, chip in CHIPS.items() for shape in chip.shapes.split()}
    if name not in known:
        raise ConfigError(f"--topology {name}: unknown; choose from {', '.join(known)}")
    chip, shape = known[name]
    return Topology(name, chip, tuple(map(int, shape.split("x"))))


def estimate(topology: Topology, result: dict[str, Any]) -> dict[str, Any]:
    """Estimates the time of a step by FORMULA.

    Args:
      topology: where the program runs.
      result: flops, bytes and collectives of `planner.compile_job`, forward and passes of its Job.

    Returns:
      Seconds of `arithmetic`, `memory` and `links` and of the `step`; which of them is its `bound`; and `mfu`.
    """
    chip, chips = topology.chip, math.prod(topology.shape)
    links = 0.0
    for collective in result["collectives"]:
        n = collective["group"]
        ring = (n - 1) / n * (2 if collective["kind"] == "all-reduce" else 1)
        parallel_links = max(topology.links, 1) if n == chips else 1
        links += ring * collective["bytes"] * collective["times"] / (parallel_links * chip.link)
    times = {"arithmetic": result["flops"] * result["passes"] / chip.flops, "memory": result["bytes"] / chip.bandwidth}
    step = max(times.values()) + links
    times["links"] = links
    mfu = 3 * result["forward"] / (step * chip.flops)
    return times | {"step": step, "bound": max(times, key=times.__getitem__), "mfu": mfu}
