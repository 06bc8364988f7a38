"""What figures came from: checksums of arrays, versions of packages and the git revision."""

import importlib.metadata
import subprocess
import zlib
from pathlib import Path

import jax
import numpy as np

PACKAGES = ("score_st", "jax", "jaxlib", "flax", "diffrax", "numpy")
PART = 1024  # images


def checksum(tree) -> int:
    """Returns the CRC-32 of all arrays of a tree; of images that are read when they are needed, part by part."""
    crc = 0
    for leaf in jax.tree.leaves(tree):
        whole = not hasattr(leaf, "shape") or isinstance(leaf, np.ndarray | jax.Array) or not leaf.shape
        parts = [leaf] if whole else (leaf[first : first + PART] for first in range(0, len(leaf), PART))
        for part in parts:
            crc = zlib.crc32(np.ascontiguousarray(part).data, crc)
    return crc


def software() -> dict:
    """Returns the versions of the packages, and the git revision of this package if it is in a checkout."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    file = Path(__file__)
    git = lambda *words: subprocess.run(["git", "-C", str(file.parent), *words], capture_output=True, text=True)
    try:
        tracked = git("ls-files", "--error-unmatch", file.name).returncode == 0
        revision = git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*").stdout.strip()
    except OSError:  # git is not installed
        tracked, revision = False, ""
    return {"versions": versions, "git_revision": revision if tracked and revision else None}
