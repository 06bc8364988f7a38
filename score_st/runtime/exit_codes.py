"""The exit codes of the commands: what each means, and whether the launchers start the same command again.

The one table of them. `--help`, `launch/` and docs/pods.md agree with it, see tests/runtime/test_exit_codes.py.
"""

from typing import NamedTuple

DONE = 0
FAILED = 1
WRONG_REQUEST = 2
LOCAL_STORAGE = 74
MISSING = 75
HUNG_UP = 129
INTERRUPTED = 130
ABORTED = 134
KILLED = 137
STOPPED = 143


class ExitCode(NamedTuple):
    """What an exit code means."""

    meaning: str
    restarted: bool = False  # whether the launchers start the same command again, which resumes
    processes: bool = False  # whether only commands that may run in several processes end with it
    shown: bool = True  # in --help


TABLE = {
    DONE: ExitCode("done"),
    FAILED: ExitCode("a loss that is not finite, a comparison that failed, or an error of the program", shown=False),
    WRONG_REQUEST: ExitCode("the request can't be met; nothing was written"),
    LOCAL_STORAGE: ExitCode("local storage failed during the run: full, over quota, read-only or gone"),
    MISSING: ExitCode("another process or a bucket is not there; the same command resumes", restarted=True),
    HUNG_UP: ExitCode("SIGHUP, after saving: the terminal was closed; nohup prevents it", processes=True),
    INTERRUPTED: ExitCode("interrupted; training saves first"),
    ABORTED: ExitCode("another process died; the same command resumes", restarted=True, processes=True),
    KILLED: ExitCode("killed; the same command resumes", restarted=True, shown=False),
    STOPPED: ExitCode("SIGTERM, after saving; the same command resumes", restarted=True, processes=True),
}


def shown(processes: bool) -> dict[int, str]:
    """Returns the meanings of the codes that --help lists; `processes`: of a command that may run in several."""
    return {code: entry.meaning for code, entry in TABLE.items() if entry.shown and processes >= entry.processes}
