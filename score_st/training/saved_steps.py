"""Which checkpoints a workdir has: only finished ones count, snapshots are kept, and damaged ones are set aside."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import jax
from etils import epath
from jax.experimental import multihost_utils

from score_st import strict_json
from score_st.config import flatten
from score_st.runtime import mirror, storage
from score_st.runtime.workdir import read_config, write_text

if TYPE_CHECKING:  # it takes long to import
    import orbax.checkpoint as ocp

FOLDERS = ("checkpoints", "averages")  # those that Orbax writes
KEPT = "kept.json"  # in a workdir: steps that are snapshots of an earlier training.snapshot_freq


def root(workdir: str | Path, folder: str = "checkpoints") -> epath.Path:
    """Returns where Orbax keeps a folder of the workdir: in the bucket for a mirror of gs://, otherwise in it."""
    url = mirror.url_of(workdir)
    if url.startswith("gs://"):
        return epath.Path(storage.join(url, folder))
    return epath.Path(Path(workdir).absolute() / folder)


def steps(workdir: str | Path, folder: str = "checkpoints") -> list[int]:
    """Returns the steps of the finished checkpoints of a folder, in ascending order."""
    return finished(root(workdir, folder))


def finished(place: epath.Path) -> list[int]:
    """Returns the steps of the finished checkpoints in a `root`, in ascending order."""
    remote = mirror.of(place)
    if remote and remote.url.startswith("s3://"):  # of which the mirror has the newest alone
        return remote.finished_steps(place.name)
    paths = [path for path in place.iterdir() if path.name.isdecimal()] if place.is_dir() else []
    return sorted(int(path.name) for path in paths if (path / mirror.MARKER).exists())


def keep_snapshots(workdir: Path, period: int) -> None:
    """Notes which checkpoints are snapshots where training.snapshot_freq has changed, for `manager` to keep them.

    Args:
      workdir: of the run, whose config.json has the period that they were made with.
      period: the new one.
    """
    stored = flatten(read_config(workdir) or {}).get("training.snapshot_freq", period)
    if stored == period or not (isinstance(stored, int) and stored > 0) or jax.process_index():
        return
    kept = kept_snapshots(workdir) | {step for step in steps(workdir) if step % stored == 0}
    write_text(workdir / KEPT, json.dumps(sorted(kept)))


def kept_snapshots(workdir: str | Path) -> set[int]:
    """Returns the steps that `keep_snapshots` has noted; all that there are if the note is damaged."""
    try:
        kept = strict_json.loads((Path(workdir) / KEPT).read_bytes())
        if isinstance(kept, list) and all(type(step) is int for step in kept):
            return set(kept)
    except FileNotFoundError:
        return set()
    except (OSError, ValueError):
        pass
    return set(steps(workdir))


def shown(manager: "ocp.CheckpointManager", step: int) -> str:
    """Returns the folder of a checkpoint as the user knows it."""
    place = str(manager.directory)
    return f"{place if '://' in place else mirror.shown(place)}/{step}"


def unfinished(manager: "ocp.CheckpointManager") -> dict[int, str]:
    """Returns what is wrong with folders that Orbax takes for checkpoints, by step: those that are not finished."""
    complete = finished(manager.directory)
    return {s: f"{shown(manager, s)} is not complete" for s in manager.all_steps() if s not in complete}


def set_aside(manager: "ocp.CheckpointManager", wrong: dict[int, str], then: str = "") -> None:
    """Renames folders of checkpoints so that they do not count; on gs:// they lose what makes them complete.

    Args:
      manager: of the folders.
      wrong: what is wrong with each, by step. It is said on stderr.
      then: what follows, for the message.
    """
    if not wrong:
        return
    multihost_utils.sync_global_devices("checkpoint chosen")  # nothing is renamed before all have read
    for step, message in wrong.items() if jax.process_index() == 0 else ():
        folder = manager.directory / str(step)
        if str(folder).startswith("gs://"):
            (folder / mirror.MARKER).unlink(missing_ok=True)
            kept = "it no longer counts"
        else:
            aside = folder.with_name(f"{step}.damaged")
            if aside.exists():
                aside.rmtree()
            folder.rename(aside)
            kept = f"it is now {aside.name}"
        print(f"warning: {message}; {kept}{then}", file=sys.stderr, flush=True)
    multihost_utils.sync_global_devices("checkpoints set aside")
    manager.reload()
