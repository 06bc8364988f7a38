"""Several processes: how they find each other, agree on a step to stop after, and end together.

TPU pods, SLURM and Open MPI are found by JAX. Otherwise SCORE_ST_COORDINATOR=host:port, SCORE_ST_PROCESSES and
SCORE_ST_PROCESS say it; with nothing set there is one process, and nothing here does anything.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
from jax._src import clusters, distributed

from score_st import one_line
from score_st.config import ConfigError

GONE, STOPPED = 75, 143  # exit codes: another process died or never came; SIGTERM


class Lost(Exception):
    """Another process died or never came."""


def setting(name: str, default: str = "") -> int:
    """The environment's SCORE_ST_`name`, or a ConfigError."""
    text = os.environ.get(f"SCORE_ST_{name}", default)
    if not text.isdecimal():
        raise ConfigError(f"SCORE_ST_{name}={text!r}: should be a whole number")
    return int(text)


def find(limit: int) -> tuple | None:
    """Coordinator, number of processes, this one's, its devices (None: all); or None for a process by itself."""
    if address := os.environ.get("SCORE_ST_COORDINATOR"):
        found = address, setting("PROCESSES"), setting("PROCESS"), None
        if found[2] >= found[1] or not address.rpartition(":")[2].isdecimal():
            raise ConfigError(f"SCORE_ST_COORDINATOR={address}: should be host:port, and SCORE_ST_PROCESS < {found[1]}")
        return found if found[1] > 1 else None
    if setting("PROCESSES", "2") == 1 or os.environ.get("SLURM_NTASKS") == "1":
        return None
    # not Kubernetes: to JAX any of its pods looks like a part of a job
    kinds = (clusters.OmpiCluster, clusters.SlurmCluster, clusters.GkeTpuCluster, clusters.GceTpuCluster)
    kind = next((kind for kind in kinds if kind.is_env_present()), None)
    found = kind and kind.auto_detect_unset_distributed_params(None, None, None, None, kind.name, limit)
    return found if found and found[1] > 1 else None


def start(settings: dict):
    """Joins the other processes, before any device is touched; `settings` should be the same everywhere.

    Raises:
      ConfigError: the environment makes no sense, or the settings differ.
      Lost: a process did not come within SCORE_ST_START_TIMEOUT seconds (300).
    """
    limit = setting("START_TIMEOUT", "300")
    if jax.distributed.is_initialized() or not (found := find(limit)):
        return
    address, count, index, devices = found
    hello = {"process": index, "host": socket.gethostname(), "settings": json.loads(json.dumps(settings, default=str))}
    (join if index else gather)(address, count, hello, limit)
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    command = [sys.executable, "-S", one_line.__file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True).stdin as pipe:
        os.dup2(pipe.fileno(), 2)
    if index:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # process 0 alone prints
    jax.config.update("jax_enable_preemption_service", False)  # it swallows SIGTERM where nobody asks it
    alive = {"heartbeat_timeout_seconds": setting("HEARTBEAT", "30"), "shutdown_timeout_seconds": 600}
    jax.distributed.initialize(address, count, index, devices, "deactivate", initialization_timeout=60, **alive)


def gather(address: str, count: int, hello: dict, limit: int):
    """Process 0 waits for the others, names those that don't come, and tells all whether they agree."""
    try:
        server = socket.create_server(("", int(address.rpartition(":")[2])), backlog=count)
    except OSError as error:
        raise ConfigError(f"{address}: can't listen there ({error.strerror}); another port would do") from error
    came, began, said = {}, time.monotonic(), 0
    with server, contextlib.ExitStack() as stack:
        while missing := [str(i) for i in range(1, count) if i not in came]:
            waited = time.monotonic() - began
            who = f"{address}: process {', '.join(missing)} of {count}"
            if waited > limit:
                raise Lost(f"{who} did not come within {limit} s; see its log, or allow more by SCORE_ST_START_TIMEOUT")
            if waited // 30 > said:
                said = waited // 30
                print(f"{who} is awaited since {waited:.0f} s", file=sys.stderr, flush=True)
            server.settimeout(min(1, limit))
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # whoever is no process of ours
                line = stack.enter_context(server.accept()[0])
                line.settimeout(10)
                other = json.loads(line.makefile().readline())
                came[other["process"]] = line, other
        verdict = next(filter(None, (difference(hello, other) for _, other in came.values())), None)
        for line, _ in came.values():
            with contextlib.suppress(OSError):
                line.sendall(json.dumps(verdict).encode() + b"\n")
                line.recv(1)  # the other side closes first, which leaves the port free
    if verdict:
        raise ConfigError(verdict)


def join(address: str, count: int, hello: dict, limit: int):
    """The other processes' side of `gather`; ends with exit code 2 where process 0 says why."""
    host, _, port = address.rpartition(":")
    end = time.monotonic() + limit
    while (left := end - time.monotonic()) > 0:
        with contextlib.suppress(OSError, ValueError), socket.create_connection((host, int(port)), min(left, 5)) as line:
            line.sendall(json.dumps(hello).encode() + b"\n")
            line.settimeout(left)
            return os._exit(2) if json.loads(line.makefile().readline()) else None
        time.sleep(0.3)
    raise Lost(f"{address}: no answer within {limit} s; process 0 of {count} should be there")


def difference(first: dict, other: dict) -> str | None:
    """Says which settings differ from those of process 0."""
    a, b = first["settings"], other["settings"]
    keys = [key for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]
    shown = ", ".join(f"{key}={b.get(key)!r} (not {a.get(key)!r})" for key in keys[:3])
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"process {other['process']} on {other['host']} differs from process 0: {shown}{more}" if keys else None


def leave(code: int, line: str):
    """Ends with one line on stderr: of process 0 where all fail alike, and without waiting for the others at exit."""
    state, several = distributed.global_state, jax.distributed.is_initialized()
    if several:
        with contextlib.suppress(Exception):
            state.client.wait_at_barrier("score_st/failed", 3000)
            line = "" if state.process_id else line
    print(line, end="\n" if line else "", file=sys.stderr, flush=True)
    if several:
        time.sleep(0 if state.process_id else 1)  # the coordinator goes last
        os._exit(code)
    sys.exit(code)


def broken(error: Exception):
    """Ends after an error that another process's death may be behind: the runtime soon says whose, and aborts."""
    if any(word in str(error) for word in ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE", "ABORTED")):
        time.sleep(setting("HEARTBEAT", "30") + 10)
    sys.excepthook(type(error), error, error.__traceback__)
    sys.stderr.flush()
    os._exit(GONE)


class Preemption:
    """SIGTERM as a step, the same on all processes, after which to save and end."""

    KEY = "score_st/preempted"

    def __init__(self, step: int):
        self.step, self.stop, self.lock, self.noticed = step, None, threading.Lock(), threading.Event()
        self.several = jax.distributed.is_initialized()
        self.listen()
        if self.several:
            threading.Thread(target=self._agree, daemon=True).start()

    def listen(self, really: bool = True):
        """Without `really`, SIGTERM ends the process at once."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, (lambda *_: self.noticed.set()) if really else signal.SIG_DFL)

    def _agree(self):
        state, client = distributed.global_state, distributed.global_state.client
        with contextlib.suppress(Exception):  # the job is coming down
            while True:
                if self.noticed.wait(0.5):
                    client.key_value_set(self.KEY, "", allow_overwrite=True)
                with contextlib.suppress(jax.errors.JaxRuntimeError):
                    client.key_value_try_get(self.KEY)
                    break
            with self.lock:  # no process goes on until the last step is known
                client.key_value_set(f"{self.KEY}/step/{state.process_id}", str(self.step))
                client.wait_at_barrier(f"{self.KEY}/reported", 60000)
                self.stop = 1 + max(int(step) for _, step in client.key_value_dir_get(f"{self.KEY}/step"))

    def reached(self, step: int) -> bool:
        """Whether to save and end after `step`; asked after every step."""
        if not self.several:
            return self.noticed.is_set()
        with self.lock:
            self.step = step
            return self.stop is not None and step >= self.stop
