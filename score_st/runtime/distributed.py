"""Several processes: how they meet, stop at the same step on a signal, and end with the same exit code.

With SCORE_ST_COORDINATOR=host:port, SCORE_ST_PROCESSES and SCORE_ST_PROCESS set, the processes meet at that address.
On TPU pods, under SLURM and under Open MPI, `jax.distributed.initialize` finds them. Otherwise there is one process,
and `start` does nothing.
"""

import collections
import contextlib
import inspect
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from score_st.config import ConfigError
from score_st.runtime import endings, exit_codes, rendezvous, sharding

MISSING, STOPPED = exit_codes.MISSING, exit_codes.STOPPED


def setting(name: str, default: str = "") -> int:
    """Returns the environment's SCORE_ST_`name`, or raises a ConfigError."""
    text = os.environ.get(f"SCORE_ST_{name}", default)
    if not text.isdecimal():
        raise ConfigError(f"SCORE_ST_{name}={text!r}: should be a whole number")
    return int(text)


def several() -> bool:
    """Whether this process works with others."""
    return jax.distributed.is_initialized()


def process_index() -> int:
    """This process's number, which touches no device where the environment says it."""
    return setting("PROCESS") if "SCORE_ST_COORDINATOR" in os.environ else jax.process_index()


def start(settings: dict[str, Any]) -> None:
    """Joins the other processes, if there are any; `settings` should be the same on all of them.

    Ends the program (75) if a process does not come within SCORE_ST_START_TIMEOUT seconds (300).

    Raises:
      ConfigError: the environment makes no sense, or the settings differ.
    """
    limit = setting("START_TIMEOUT", "300")
    if several():
        return
    if address := os.environ.get("SCORE_ST_COORDINATOR"):
        count, index = setting("PROCESSES"), setting("PROCESS")
        if index >= count or not address.rpartition(":")[2].isdecimal():
            raise ConfigError(f"SCORE_ST_COORDINATOR={address}: should be host:port, and SCORE_ST_PROCESS < {count}")
        if count > 1:
            meet(address, count, {"process": index} | introduction(settings), limit)
            initialize(60, coordinator_address=address, num_processes=count, process_id=index)
    elif in_cluster():
        start_in_cluster(settings, limit)


def meet(address: str, count: int, own: dict[str, Any], limit: int) -> None:
    """Waits for all processes, and compares their settings; ends the program if one does not come, or differs."""
    try:
        if not own["process"]:
            rendezvous.gather(address, count, own, limit)
        elif not rendezvous.greet_first(address, count, own, limit):
            os._exit(exit_codes.WRONG_REQUEST)  # process 0 says why
    except rendezvous.Missing as error:
        leave(MISSING, f"error: {error}")


def introduction(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns what a process tells the others about itself, as JSON would hold it."""
    return {"host": socket.gethostname(), "settings": json.loads(json.dumps(settings, default=str))}


def initialize(timeout: int, **places: Any) -> None:
    """Connects to the other processes; from here on process 0 alone prints, and JAX's aborts are one line.

    Args:
      timeout: seconds to wait for the others.
      **places: who this process is, for `jax.distributed.initialize`; without them, JAX asks the cluster.
    """
    sys.stderr = endings.output(os.dup(2))
    source = f"{inspect.getsource(condense_aborts)}\n\ncondense_aborts()"
    child = subprocess.Popen([sys.executable, "-S", "-c", source], stdin=subprocess.PIPE, start_new_session=True)
    assert child.stdin
    os.dup2(child.stdin.fileno(), 2)
    child.stdin.close()
    jax.config.update("jax_enable_preemption_service", False)  # see Preemption
    jax.distributed.initialize(
        **places,
        cluster_detection_method="deactivate" if places else None,
        initialization_timeout=timeout,
        heartbeat_timeout_seconds=setting("HEARTBEAT", "30"),
        shutdown_timeout_seconds=600,
    )
    if process_index():
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def condense_aborts() -> None:
    """Copies stdin to stderr, but sums up in one line what JAX says as it aborts.

    Runs as a program of its own, which outlives the abort, so it imports what it needs.
    """
    import re
    import sys

    held = ""
    for line in sys.stdin:
        if held or re.match(r"[EF]\d{4} .* (coordination_service\w*\.cc|client\.h):", line):
            held += line
        else:
            print(line, end="", file=sys.stderr, flush=True)
    names = re.search(r"stopped sending heartbeats\):\s*([\d, \n]+)", held)
    if "Terminating process" in held and (names or "Failed to send RPC" in held):
        dead = ", ".join(names[1].replace(",", " ").split()) if names else "0"
        held = f"error: process {dead} died or can't be reached; started again, the run resumes from what was saved\n"
    print(held, end="", file=sys.stderr)


def in_cluster() -> bool:
    """Whether JAX should look for other processes.

    It is not asked on Kubernetes without TPUs, where it takes any pod for a part of a job.
    """
    if setting("PROCESSES", "2") < 2:
        return False
    if os.environ.get("OMPI_COMM_WORLD_SIZE", "1") != "1":
        return True
    if os.environ.get("SLURM_NTASKS", "1") != "1" and "SLURM_STEP_NODELIST" in os.environ:
        return True
    if "TPU_ML_PLATFORM" not in os.environ:  # JAX sets it on a machine that has TPUs
        return False
    hosts = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES")
    if hosts:
        return "," in hosts or os.environ.get("MEGASCALE_NUM_SLICES", "1") != "1"
    return "KUBERNETES_SERVICE_HOST" not in os.environ  # a TPU VM, whose metadata JAX reads


def start_in_cluster(settings: dict[str, Any], limit: int) -> None:
    """Lets JAX find the other processes, and compares the settings; see `start`.

    JAX names no process that does not come, and would abort.
    """

    def give_up() -> None:
        print(f"error: not all processes came within {limit} s (SCORE_ST_START_TIMEOUT)", file=sys.stderr, flush=True)
        os._exit(MISSING)

    timer = threading.Timer(limit, give_up)
    timer.daemon = True
    timer.start()
    try:
        initialize(limit + 60)
    except ValueError:  # no cluster
        return
    finally:
        timer.cancel()
    text = json.dumps(introduction(settings)).encode()
    longest = int(np.max(multihost_utils.process_allgather(np.array(len(text), np.int32))))
    texts = multihost_utils.process_allgather(np.frombuffer(text.ljust(longest), np.uint8))
    if verdict := rendezvous.disagreement([json.loads(row.tobytes()) for row in np.asarray(texts)]):
        raise ConfigError(verdict)


def leave(code: int, line: str, at_once: bool = False) -> NoReturn:
    """Ends the program with one line on stderr, printed by process 0 alone if all processes leave together.

    With `at_once` no thread is waited for, such as one that computes, or writes to a bucket that does not answer.
    """
    sys.stdout.flush()
    if not several():
        print(line, end="\n" if line else "", file=sys.stderr, flush=True)
        endings.end(code) if at_once else sys.exit(code)
    together, index = threading.Event(), process_index()

    def meet() -> None:
        with contextlib.suppress(Exception):
            jax.distributed.shutdown()  # returns once all processes have called it
            together.set()

    threading.Thread(target=meet, daemon=True).start()
    printed_by_first = together.wait(3) and index
    if line and not printed_by_first:
        print(line, file=sys.stderr, flush=True)
    os._exit(code)


def fail(error: BaseException) -> NoReturn:
    """Ends with the traceback, once JAX had the time to abort if another process's death is behind the error."""
    if any(word in str(error) for word in ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE", "ABORTED")):
        time.sleep(setting("HEARTBEAT", "30") + 10)
    sys.excepthook(type(error), error, error.__traceback__)
    os._exit(1)


class Preemption:
    """SIGTERM, SIGHUP or SIGINT to any process, which all processes notice after the same step.

    All processes make one at the same place and ask `reached` after every dispatch. With several, each contributes its
    exit code to a maximum over all devices, which is dispatched after the step and read `LAG` dispatches later, so
    that the loop does not wait for it.

    `multihost_utils.reached_preemption_sync_point` does not serve: once JAX's preemption service has started, it takes
    SIGTERM for itself even while nobody asks, as during a snapshot, which should end at once
    (tests/runtime/test_distributed.py, test_sigterm_ends_a_snapshot_at_once).
    """

    LAG = 4
    OVERDUE = 0.4  # of the time

    def __init__(self, mesh: Mesh, grace: float = 25.0) -> None:
        """See `listen`.

        Args:
          mesh: the devices of all processes.
          grace: seconds after which a command ends in any case.
        """
        self.mesh, self.grace, self.noticed, self.code = mesh, grace, 0.0, 0
        self.pending, self.handlers = collections.deque[jax.Array](), dict[signal.Signals, Any]()
        self.most = jax.jit(jnp.max, out_shardings=sharding.replicated(mesh))

    def listen(self, active: bool = True) -> None:
        """Takes note of signals from now on; if not `active`, they end the process at once.

        SIGHUP and SIGINT are left alone where they are ignored, as under nohup.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        for number in endings.CODES if active else ():
            if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGTERM:
                self.handlers[number] = signal.signal(number, self.notice)
        for number in () if active else [*self.handlers]:
            signal.signal(number, self.handlers.pop(number))
        if active or not self.noticed:
            # a process that is killed from outside after `grace` should have ended by itself
            endings.allow(0.96 * self.grace if active else endings.LIMIT)

    def pause(self) -> None:
        """From now on a signal ends the process at once, and so does one that has come since the last answer."""
        self.listen(False)
        if self.noticed:
            signal.raise_signal(next(number for number, code in endings.CODES.items() if code == self.code))

    def notice(self, number: int, *_: Any) -> None:
        """Notes which signal has come, and when; a signal handler.

        Raises:
          KeyboardInterrupt: the second Ctrl-C.
        """
        if not self.noticed:
            self.noticed, self.code = time.monotonic(), endings.CODES[signal.Signals(number)]
        elif number == signal.SIGINT and time.monotonic() > self.noticed + endings.REPEATED:
            raise KeyboardInterrupt

    def is_overdue(self) -> bool:
        """Whether a signal came so long ago that the program should have ended."""
        return bool(self.noticed) and time.monotonic() > self.noticed + self.OVERDUE * self.grace

    def reached(self, wait: bool = False) -> int:
        """Returns the exit code with which to stop now, or 0, the same on all processes; asked after every dispatch.

        Args:
          wait: whether to wait for the answer as of now, as before something that takes long.
        """
        if not several():
            return self.code
        codes = np.full(len(self.mesh.local_devices), self.code, np.int32)
        layout = sharding.sharded(self.mesh)
        self.pending.append(self.most(jax.make_array_from_process_local_data(layout, codes, (self.mesh.size,))))
        if wait:
            newest = self.pending.pop()
            self.pending.clear()
            return int(newest)
        return int(self.pending.popleft()) if len(self.pending) > self.LAG else 0
