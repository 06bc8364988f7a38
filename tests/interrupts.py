"""Presses Ctrl-C at random moments of an evaluation: it should end with 130 within 5 s, and its ledger be complete.

  python tests/interrupts.py --times 50

Prints a line for each try. The evaluation resumes at the end, and gives the figures of one that none disturbed.
"""

import argparse
import collections
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from support.commands import DIGITS, overrides
from support.environment import QUICK
from support.processes import ended, start

TRAINING = dict(training__n_iters=4, training__snapshot_sampling=False, eval__enable_bpd=False)
EVALUATION = dict(
    eval__rtol=1e-2,
    eval__atol=1e-2,
    eval__nll_iter=2,
    eval__nelbo_iter=0,
    eval__gradient_images=0,
    eval__batch_size=39,
)


def main() -> None:
    """The exit code is 1 if an evaluation ended differently."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a script, and by children
    folder = Path(tempfile.mkdtemp(prefix="interrupts_"))
    environment = os.environ | dict(XLA_FLAGS=QUICK, JAX_COMPILATION_CACHE_DIR=str(folder / "cache"))
    environment |= dict(JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")
    command = lambda name, **more: (
        [sys.executable, "-m", f"score_st.{name}", "--config", DIGITS, "--workdir", folder / "run", *overrides(**more)]
    )
    figures = lambda: json.loads((folder / "run/eval/bpd.json").read_text())["nll"]
    for name, more in (("train", TRAINING), ("eval", EVALUATION)):
        code, output = ended(start(environment, *command(name, **more)), timeout=600)
        assert code == 0, output
    expected, draw, wrong = figures(), random.Random(arguments.seed), 0
    codes = collections.Counter[int]()
    for i in range(arguments.times):
        shutil.rmtree(folder / "run/eval")
        process = start(environment, *command("eval", **EVALUATION))
        for line in process.stdout:
            if line.startswith("nll "):
                break
        time.sleep(draw.uniform(0, 1))
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        code, output = ended(process)
        seconds, lines = time.monotonic() - began, (folder / "run/eval/bpd.jsonl").read_text()
        complete = lines.endswith("\n") and all(json.loads(line) for line in lines.splitlines())
        right = code == 130 and seconds < 5 and complete and "Traceback" not in output
        codes[code], wrong = codes[code] + 1, wrong + (not right)
        print(json.dumps(dict(number=i, code=code, seconds=round(seconds, 2), ledger=complete)), flush=True)
        if not right:
            print(output, flush=True)
    code, output = ended(start(environment, *command("eval", **EVALUATION)), timeout=600)
    same = code == 0 and figures() == expected
    print(f"exit codes {dict(codes)}; resumed, the figures are {'the same' if same else 'others'}")
    shutil.rmtree(folder)
    sys.exit(bool(wrong) or not same)


if __name__ == "__main__":
    main()
