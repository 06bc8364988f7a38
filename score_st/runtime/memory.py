"""Whether the devices have the memory that a request takes at least, counted before anything is built.

The rule: what is counted can't be less, and is compared with all of a device's memory; devices that are CPUs share the
host's. A request that passes may still fail.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import jax
from jax.sharding import Mesh

from score_st.config import ConfigError

CGROUP = Path("/sys/fs/cgroup/memory.max")  # of a container


def of_host() -> int:
    """Returns the bytes of memory that this host, or this container, has."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(total, int(CGROUP.read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        return total


def of_device(mesh: Mesh) -> int | None:
    """Returns the bytes that each device of a mesh may take, or None where it does not say."""
    local = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    if not local:
        return None
    if local[0].platform == "cpu":
        return of_host() // len(local)
    return (local[0].memory_stats() or {}).get("bytes_limit")


def check(mesh: Mesh, setting: str, needs: Mapping[str, float], has: int | None = None) -> None:
    """Raises ConfigError if each device of a mesh would need more bytes than it has.

    Args:
      mesh: the devices.
      setting: what asks for it, for the message.
      needs: bytes on each device, by what they are for.
      has: the bytes of a device, by default those of the mesh's.
    """
    has, total = has or of_device(mesh), sum(needs.values())
    if has is not None and total > has:
        parts = " and ".join(f"{size / 1e9:,.1f} GB for {what}" for what, size in needs.items() if size > has / 100)
        devices = "1 device" if mesh.size == 1 else f"each of {mesh.size} devices"
        raise ConfigError(f"{setting}: {devices} would need at least {parts}, and has {has / 1e9:,.1f} GB")
