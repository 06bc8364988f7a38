"""TPU chips, the slices that can be had of them, and a roofline's time of a step."""

import dataclasses
import importlib.util
import math
import os

from score_st.config import ConfigError

FORMULA = (
    "step = max(FLOPs / peak, bytes / bandwidth) + sum over collectives of ring x bytes / (links x speed of a link), "
    "ring = 2 (n-1)/n for all-reduce and (n-1)/n else, n chips; MFU = 3 x FLOPs of the network forward / (step x peak)"
)
# libtpu asks no metadata server, takes no lock and says nothing
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
    """Peak arithmetic, memory: docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e; links: jax-ml.github.io/scaling-book.

    Attributes:
      hbm: GiB, of which the runtime keeps some.
      flops: bfloat16 a second; float32 products are of bfloat16 too, unless more precision is asked for.
      bandwidth: of HBM, bytes a second.
      link: bytes a second one way.
      ring: an axis whose length is a multiple of this one is closed to a ring.
      shapes: slices that can be had.
      options: of libtpu; v4 and v5p have two cores a chip, which make one device.
    """

    hbm: float
    flops: float
    bandwidth: float
    link: float
    ring: int
    shapes: str
    options: dict = dataclasses.field(default_factory=dict)


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
    """Attributes: name: as v5e:4x4."""

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def links(self) -> int:
        """Out of a chip at a corner, both ways of a ring counted."""
        return sum((n > 1) * (1 + (n % self.chip.ring == 0)) for n in self.shape)

    def devices(self) -> list:
        """Descriptions of the chips, for compilation alone; raises ConfigError without libtpu."""
        if importlib.util.find_spec("libtpu") is None:
            raise ConfigError("score_st.plan needs the TPU compiler: pip install -e '.[plan]'")
        from jax.experimental import topologies

        os.environ.update(ENVIRONMENT)
        host = {"chips_per_host_bounds": (1, 1, 1)} if math.prod(self.shape) == 1 else {}
        return topologies.get_topology_desc(self.name, platform="tpu", **host, **self.chip.options).devices


def topology(name: str) -> Topology:
    """Raises ConfigError for an unknown name, with the known ones."""
    known = {f"{kind}:{shape}": (chip, shape) for kind, chip in CHIPS.items() for shape in chip.shapes.split()}
    if name not in known:
        raise ConfigError(f"--topology {name}: unknown; choose from {', '.join(known)}")
    chip, shape = known[name]
    return Topology(name, chip, tuple(map(int, shape.split("x"))))


def estimate(topology: Topology, job: dict, made: dict) -> dict:
    """Seconds of a step by FORMULA: `arithmetic`, `memory`, `links`, their `step`, `bound` (the largest), and `mfu`.

    Args:
      job: forward, passes of a Job.
      made: see `compile`.
    """
    chip, chips = topology.chip, math.prod(topology.shape)
    links = 0.0
    for c in made["collectives"]:
        n = c["group"]
        ring = (n - 1) / n * (2 if c["kind"] == "all-reduce" else 1)
        ways = topology.links if n == chips else 1
        links += ring * c["bytes"] * c["times"] / (max(ways, 1) * chip.link)
    times = {"arithmetic": made["flops"] * job["passes"] / chip.flops, "memory": made["bytes"] / chip.bandwidth}
    step = max(times.values()) + links
    times["links"] = links
    mfu = 3 * job["forward"] / (step * chip.flops)
    return times | {"step": step, "bound": max(times, key=times.get), "mfu": mfu}
