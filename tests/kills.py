"""Kills one of two training processes at random moments and compares the result bit by bit.

  python tests/kills.py --times 20

Each time a run begins in an empty folder. At some moment SIGTERM or SIGKILL, in turn, goes to one of its two
processes, and `launch/local.sh --restart` starts both again. Parameters, average and optimizer state are compared with
those of an uninterrupted run.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from support.commands import SMALL, overrides
from support.environment import QUICK
from support.processes import curve, ended, final_state, launched, workers

SETTINGS = dict(training__n_iters=1200, training__tau_groups=2, training__eval_freq=200, training__log_freq=1)
SETTINGS |= dict(training__snapshot_freq=10000, training__snapshot_freq_for_preemption=50, data__num_threads=1)
SETTINGS |= dict(training__snapshot_sampling=False, eval__enable_bpd=False)
COMMAND = [sys.executable, "-m", "score_st.train", "--config", SMALL, *overrides(**SETTINGS)]
PAIR = ["--processes", 2, "--devices", 1]


def disturbed(
    environment: Mapping[str, str], workdir: Path, index: int, sent: signal.Signals, delay: float
) -> tuple[int | None, int, str]:
    """Trains, and sends a signal to process `index` after `delay` seconds.

    Returns:
      The last logged step at that time (0: none yet; None: the run was over), the launcher's exit code, its output.
    """
    launcher, step = launched(environment, workdir, *PAIR, "--restart", command=COMMAND), None
    time.sleep(delay)
    alive = workers(launcher)
    if len(alive) == 2:
        step = max(curve(workdir), default=0)
        os.kill(alive[index], sent)
    return step, *ended(launcher, timeout=600)


def main() -> None:
    """Prints a line for each kill; the exit code is 1 if a run ended differently."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kills_"))
    more = dict(JAX_COMPILATION_CACHE_DIR=str(folder / "cache"), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")
    environment, seconds = os.environ | more | dict(XLA_FLAGS=QUICK), []
    for name in ("compiling", "uninterrupted"):  # the second finds everything compiled, as the others will
        began = time.monotonic()
        code, output = ended(launched(environment, folder / name, *PAIR, command=COMMAND), timeout=900)
        assert code == 0, output
        seconds.append(time.monotonic() - began)
    expected, losses = final_state(folder / "uninterrupted"), curve(folder / "uninterrupted")
    print(f"uninterrupted: {seconds[1]:.1f} s, step {expected[1]}", flush=True)
    draw, same = random.Random(arguments.seed), 0
    for i in range(arguments.times):
        workdir, sent = folder / f"run{i}", (signal.SIGTERM, signal.SIGKILL)[i % 2]
        index, delay = draw.randrange(2), draw.uniform(0.5, seconds[1] - 1)
        step, code, output = disturbed(environment, workdir, index, sent, delay)
        restarts = output.count("local.sh: ended with exit code")
        equal = code == 0 and jax.tree.all(jax.tree.map(np.array_equal, expected, final_state(workdir)))
        equal = equal and curve(workdir) == losses
        same += equal
        about = dict(signal=sent.name, process=index, seconds=round(delay, 1), step=step, restarts=restarts, code=code)
        print(json.dumps(about | dict(same_bits=bool(equal))), flush=True)
        if equal:
            shutil.rmtree(workdir)
        else:
            print(output, flush=True)
    print(f"{same} of {arguments.times} end with the same bits and the same curve", flush=True)
    if same == arguments.times:
        shutil.rmtree(folder)
    raise SystemExit(same != arguments.times)


if __name__ == "__main__":
    main()
