"""SIGTERM: what the machine is told before it is taken away."""

import contextlib
import signal
import threading

import jax
from jax._src import distributed

STOPPED = 143  # exit code


class Preemption:
    """SIGTERM as a step, the same on all processes, after which to save and end."""

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
        state, client, key = distributed.global_state, distributed.global_state.client, "score_st/preempted"
        with contextlib.suppress(Exception):  # the job is coming down
            while not client.key_value_dir_get(key):
                if self.noticed.wait(0.5):
                    client.key_value_set(f"{key}/now", "", allow_overwrite=True)
            with self.lock:  # no process goes on until the last step is known
                client.key_value_set(f"score_st/step/{state.process_id}", str(self.step))
                client.wait_at_barrier("score_st/steps", 60000)
                self.stop = 1 + max(int(step) for _, step in client.key_value_dir_get("score_st/step"))

    def reached(self, step: int) -> bool:
        """Whether to save and end after `step`; asked after every step."""
        with self.lock:
            self.step = step
            return self.noticed.is_set() if not self.several else self.stop is not None and step >= self.stop
