"""SIGTERM: what the machine is told before it is taken away."""

import contextlib
import itertools
import signal
import threading

import jax
from jax._src import distributed

STOPPED = 143  # exit code
COUNT = itertools.count()


class Preemption:
    """SIGTERM as a step, the same on all processes, after which to save and end.

    All processes make one at the same place, and close it.
    """

    def __init__(self, step: int):
        self.step, self.stop, self.lock, self.noticed = step, None, threading.Lock(), threading.Event()
        self.key, self.thread = f"score_st/{next(COUNT)}", threading.Thread(target=self._agree, daemon=True)
        self.several = jax.distributed.is_initialized()
        self.listen()
        if self.several:
            self.thread.start()

    def listen(self, really: bool = True):
        """Without `really`, SIGTERM ends the process at once."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, (lambda *_: self.noticed.set()) if really else signal.SIG_DFL)

    def _agree(self):
        state, client = distributed.global_state, distributed.global_state.client
        with contextlib.suppress(Exception):  # the job is coming down
            while not client.key_value_dir_get(f"{self.key}/asked"):
                if self.noticed.wait(0.5):
                    client.key_value_set(f"{self.key}/asked/now", "", allow_overwrite=True)
            with self.lock:  # no process goes on until the last step is known
                client.key_value_set(f"{self.key}/step/{state.process_id}", str(self.step))
                client.wait_at_barrier(f"{self.key}/steps", 60000)
                self.stop = 1 + max(int(step) for _, step in client.key_value_dir_get(f"{self.key}/step"))

    def reached(self, step: int) -> bool:
        """Whether to save and end after `step`; asked after every step."""
        with self.lock:
            self.step = step
            return self.noticed.is_set() if not self.several else self.stop is not None and step >= self.stop

    def close(self):
        """Nothing will ask again. A thread that is still in the runtime when Python ends would abort the process."""
        self.listen(False)
        if self.several:
            self.noticed.set()  # as SIGTERM does; it ends the threads of all
            self.thread.join()
