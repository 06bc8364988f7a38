"""What tells one state of a data set from another: recorded in the workdir when training begins, compared later.

A run that is resumed needs the images of its beginning: if files were added, a fixed random tenth is another tenth,
and images that were trained on would be tested on. Paths are not compared, so that the files may move.
"""

import json
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from score_st import strict_json
from score_st.config import ConfigError
from score_st.data.images import Images
from score_st.runtime.workdir import write_text

FILE = "data.json"  # in the workdir
SAMPLES = 64  # images whose pixels are compared


def of(images: Images) -> dict[str, Any]:
    """Returns the count and shape of images, and the CRC-32 of 64 of them, decoded: evenly spaced, with both ends.

    Images that are added, removed or sorted otherwise change it, as do other cropping and decoding. A picture that is
    replaced under its own name is noticed only if it is one of the 64.
    """
    numbers = np.unique(np.linspace(0, len(images) - 1, SAMPLES).round().astype(int))
    sample = np.ascontiguousarray(images[numbers])
    return {"count": len(images), "shape": list(images.shape[1:]), "crc32_of_64": zlib.crc32(sample.data)}


def _changes(workdir: Path, images: Mapping[str, Images]) -> list[str]:
    """Returns what differs, split by split, from what is recorded; nothing without a record.

    Raises:
      ConfigError: the record is damaged.
    """
    path = workdir / FILE
    try:
        recorded = strict_json.loads(path.read_bytes())
        recorded = {split: dict(recorded[split]) for split in images}
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{path}: is damaged ({error}); delete it to accept the images as they are now") from error
    changes = []
    for split in images:
        old, new = recorded[split], of(images[split])
        if old != new:
            counts = f"{old.get('count')} images then, {new['count']} now"
            same = old.get("count") == new["count"]
            changes.append(f"{split} has other images than at the beginning ({'as many' if same else counts})")
    return changes


def check(workdir: Path, images: Mapping[str, Images]) -> None:
    """Raises ConfigError if the splits are not those that the workdir has recorded, if it has."""
    if changes := _changes(workdir, images):
        raise ConfigError(
            f"--workdir {workdir}: {'; '.join(changes)}; give it those back, name another workdir, or delete "
            f"{workdir / FILE} to accept the images as they are now"
        )


def warn(workdir: Path, images: Mapping[str, Images]) -> None:
    """Warns on stderr if the splits are not those of training, as evaluations may be of other data."""
    for change in _changes(workdir, images) if jax.process_index() == 0 else ():
        print(f"warning: --workdir {workdir}: {change}, so some may have been trained on", file=sys.stderr)


def record(workdir: Path, images: Mapping[str, Images]) -> None:
    """Writes what is compared later, unless it is there."""
    if not (workdir / FILE).exists():
        write_text(workdir / FILE, json.dumps({split: of(images[split]) for split in images}, indent=1))
