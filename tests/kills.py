"""Kills one of two processes of a training at random moments and compares what it ends with, bit by bit.

  python tests/kills.py --times 20

Each time another run begins in an empty folder; at a moment between its start and its end SIGTERM or SIGKILL, in turn,
goes to one process of the two, `launch/local.sh --restart` starts both again, and parameters, average and optimiser
are compared with those of a run that nobody disturbed.
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
from pathlib import Path

import jax
import numpy as np
from support.commands import DIGITS, final_params, overrides
from test_pods import QUICK, curve, ended, launched, workers

SETTINGS = dict(training__n_iters=1200, training__tau_groups=2, training__eval_freq=200, training__log_freq=1)
SETTINGS |= dict(training__snapshot_freq=10000, training__snapshot_freq_for_preemption=50, data__num_threads=1)
SETTINGS |= dict(training__snapshot_sampling=False, eval__enable_bpd=False)
COMMAND = [sys.executable, "-m", "score_st.train", "--config", DIGITS, *overrides(**SETTINGS)]
PAIR = ["--processes", 2, "--devices", 1]


def disturbed(environment, workdir, which: int, sent: signal.Signals, delay: float) -> tuple[int | None, int, str]:
    """Step at which the signal went out (0 before the first; None: all was over), the launcher's exit code, output."""
    launcher, step = launched(environment, workdir, *PAIR, "--restart", command=COMMAND), None
    time.sleep(delay)
    alive = workers(launcher)
    if len(alive) == 2:
        step = max(curve(workdir), default=0) if (workdir / "metrics.jsonl").exists() else 0
        os.kill(alive[which], sent)
    return step, *ended(launcher, timeout=600)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kills_"))
    more = dict(JAX_COMPILATION_CACHE_DIR=str(folder / "cache"), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")
    environment, seconds = os.environ | more | dict(XLA_FLAGS=QUICK), []
    for name in ("compiles", "whole"):  # the second finds everything compiled, as the others will
        began = time.monotonic()
        code, output = ended(launched(environment, folder / name, *PAIR, command=COMMAND), timeout=900)
        assert code == 0, output
        seconds.append(time.monotonic() - began)
    expected, losses = final_params(folder / "whole", SETTINGS), curve(folder / "whole")
    print(f"undisturbed: {seconds[1]:.1f} s, step {expected[1]}", flush=True)
    draw, same = random.Random(arguments.seed), 0
    for i in range(arguments.times):
        workdir, sent = folder / f"run{i}", (signal.SIGTERM, signal.SIGKILL)[i % 2]
        which, delay = draw.randrange(2), draw.uniform(0.5, seconds[1] - 1)
        step, code, output = disturbed(environment, workdir, which, sent, delay)
        restarts = output.count("local.sh: ended with exit code")
        equal = code == 0 and jax.tree.all(jax.tree.map(np.array_equal, expected, final_params(workdir, SETTINGS)))
        equal = equal and curve(workdir) == losses
        same += equal
        about = dict(signal=sent.name, process=which, seconds=round(delay, 1), step=step, restarts=restarts, code=code)
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
