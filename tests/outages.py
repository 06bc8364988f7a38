"""Trains into object stores on loopback through outages, and compares the end with a local run, bit by bit.

  python tests/outages.py --seconds 30 120

For gs:// and s3://, connections are refused or left hanging for each of these times, and once for good. Prints for
each case: how the run ended, after how long, the seconds that training waited, and whether weights, average, optimizer
state and losses are those of the local run. After an outage that never ends, the printed command uploads the rescued
checkpoint, and the run resumes.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from support import buckets
from support.commands import SMALL, overrides
from support.environment import QUICK
from support.processes import ended, final_state, start

from score_st import copy
from score_st.runtime import storage

SETTINGS = dict(training__n_iters=60, training__snapshot_freq=30, training__snapshot_freq_for_preemption=3)
COMMAND = [sys.executable, "-m", "score_st.train", "--config", SMALL, *overrides(**SETTINGS)]


def losses(workdir: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in map(json.loads, (workdir / "metrics.jsonl").open())}


def same(local: Path, url: str, folder: Path) -> bool:
    copy.main(["--from", url, "--to", str(folder), "--quiet"])
    expected, actual = final_state(local), final_state(folder)
    equal = jax.tree.all(jax.tree.map(np.array_equal, expected, actual))
    return bool(equal) and losses(local) == losses(folder)


def outage(store: buckets.Store, environment: dict, mode: str, seconds: float, folder: Path) -> dict:
    """Trains, with an outage after the first checkpoint; `seconds` may be infinite."""
    url = f"{store.url}/{mode}_{seconds:g}"
    endless = (
        [] if np.isfinite(seconds) else ["--config.storage.patience=30", f"--config.storage.rescue={folder}/rescue"]
    )
    process, began = start(environment, *COMMAND, "--workdir", url, *endless), time.monotonic()
    while process.poll() is None and not any("commit_success" in item.path for item in storage.listing(url)):
        time.sleep(0.1)
    store.proxy.set(mode)
    if np.isfinite(seconds):
        time.sleep(seconds)
        store.proxy.set("pass")
    code, output = ended(process, timeout=600)
    store.proxy.set("pass")
    about = dict(store=store.scheme, mode=mode, outage=seconds, code=code, seconds=round(time.monotonic() - began, 1))
    if code == 75:
        line = output.splitlines()[-1]
        print(line, flush=True)
        code, output = ended(start(environment, sys.executable, *line.split("`")[1].split()[1:]))
        assert code == 0, output
        about["resumed"], output = ended(start(environment, *COMMAND, "--workdir", url))
    if about.get("resumed", code) != 0:
        print(output)
        return about | dict(same_bits=False)
    about["same_bits"] = same(folder / "local", url, folder / f"{store.scheme}_{mode}_{seconds:g}")
    log = [json.loads(line) for line in (folder / f"{store.scheme}_{mode}_{seconds:g}/metrics.jsonl").open()]
    return about | dict(storage_wait=round(max(line.get("storage_wait", 0) for line in log), 1))


def main() -> None:
    """Prints a line for each case; the exit code is 1 if a run ended differently."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="+", default=[30, 120])
    parser.add_argument("--stores", nargs="+", default=["gs", "s3"])
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="outages_"))
    environment = os.environ | dict(XLA_FLAGS=QUICK, JAX_COMPILATION_CACHE_DIR=str(folder / "cache"))
    environment |= dict(JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")
    code, output = ended(start(environment, *COMMAND, "--workdir", folder / "local"), timeout=300)
    assert code == 0, output
    results = []
    for scheme in arguments.stores:
        with buckets.serve(scheme, folder / f"objects_{scheme}") as store:
            for seconds in (*arguments.seconds, np.inf):
                for mode in ("refuse", "hang") if np.isfinite(seconds) else ("refuse",):
                    results.append(outage(store, environment | store.environment, mode, seconds, folder))
                    print(json.dumps(results[-1]), flush=True)
    sys.exit(not all(result["same_bits"] for result in results))


if __name__ == "__main__":
    main()
