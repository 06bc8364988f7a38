"""Where the numbers of a run go beside its metrics.jsonl: TensorBoard, a CSV file, Weights & Biases."""

import csv
import hashlib
import io
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from score_st import strict_json
from score_st.config import ConfigError, choose
from score_st.runtime.workdir import write_text

Logger = Callable[[int, Mapping[str, float]], None]  # of a step and its finite numbers


class TensorBoard:
    """Writes TensorBoard events, so that a disk that is full is an error here.

    `tensorboardX.SummaryWriter` writes them in a thread, which ends with a traceback then, and is waited for.
    """

    def __init__(self, workdir: Path, start: int, settings: Mapping[str, Any]) -> None:
        """Opens a new file in `workdir`/tensorboard; events of steps past `start` no longer count."""
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        folder = workdir / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        self.scalar, self.event = summary.scalar, event_pb2.Event
        self.file = event_file_writer.EventsWriter(str(folder / "events"))
        if start:
            began = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self.file.write_event(event_pb2.Event(step=start + 1, file_version="brain.Event:2"))
            self.file.write_event(event_pb2.Event(step=start + 1, session_log=began))
        self.file.flush()

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the values of a step."""
        for key, value in values.items():
            summary = self.scalar(key, value)
            self.file.write_event(self.event(step=step, wall_time=time.time(), summary=summary))
        self.file.flush()


class Csv:
    """Writes `metrics.csv`: a row for each step, a column for each number, empty where a step has none."""

    def __init__(self, workdir: Path, start: int, settings: Mapping[str, Any]) -> None:
        """Opens the file; rows of steps past `start`, which are done again, are dropped, and so are torn ones."""
        self.path, self.columns = workdir / "metrics.csv", ["step"]
        rows = self._rows(start)
        for row in rows:
            self.columns += [key for key in row if key not in self.columns]
        self._rewrite(rows)

    def _rows(self, stop: int | float) -> list[dict[str, str]]:
        """Returns the rows up to the step `stop`."""
        if not self.path.exists():
            return []
        text = self.path.read_text(errors="replace")
        rows = list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))
        whole = [row for row in rows if None not in row and None not in row.values()]
        return [row for row in whole if (step := row.get("step") or "").isdecimal() and int(step) <= stop]

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        lines = [self.columns, *([row.get(key, "") for key in self.columns] for row in rows)]
        write_text(self.path, "".join(f"{','.join(line)}\n" for line in lines))  # names and numbers have no commas

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        """Appends a row; the file is written anew where there is a new column."""
        if new := [key for key in values if key not in self.columns]:
            rows = self._rows(float("inf"))
            self.columns += new
            self._rewrite(rows)
        row = {"step": str(step)} | {key: repr(float(value)) for key, value in values.items()}
        with self.path.open("a") as file:
            file.write(",".join(row.get(key, "") for key in self.columns) + "\n")


class WandB:
    """Sends the numbers to Weights & Biases; WANDB_MODE=offline keeps them in `workdir`/wandb for `wandb sync`.

    WANDB_PROJECT, WANDB_ENTITY and its other variables apply. A run that is resumed is the same run there; it ignores
    steps that it has, so those after the checkpoint, which are done again, stay as they were first.
    """

    def __init__(self, workdir: Path, start: int, settings: Mapping[str, Any]) -> None:
        """Begins the run, or resumes that of wandb.json in the workdir."""
        import wandb

        path = workdir / "wandb.json"
        try:
            name = str(strict_json.loads(path.read_bytes())["id"])
        except (FileNotFoundError, ValueError, LookupError, TypeError):  # there is none, or it is damaged
            name = hashlib.sha256(f"{workdir.absolute()} {time.time_ns()}".encode()).hexdigest()[:16]
            write_text(path, strict_json.dumps({"id": name}))
        self.run = wandb.init(
            id=name,
            resume="allow",
            dir=str(workdir),
            name=workdir.name,
            config=dict(settings),
        )

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the values of a step."""
        self.run.log(dict(values), step=step)


LOGGERS: dict[str, Callable[[Path, int, Mapping[str, Any]], Logger]] = {
    "tensorboard": TensorBoard,
    "csv": Csv,
    "wandb": WandB,
}


def names(config: ConfigDict) -> list[str]:
    """Returns the entries of LOGGERS that training.loggers names, each once.

    Raises:
      ConfigError: there is no such entry, or its package is not installed.
    """
    chosen = list(dict.fromkeys(filter(None, (name.strip() for name in config.training.loggers.split(",")))))
    for name in chosen:
        choose(LOGGERS, name, "training.loggers")
    if "wandb" in chosen:
        try:
            import wandb  # noqa: F401
        except ImportError as error:
            raise ConfigError("config.training.loggers: wandb needs pip install 'score_st[wandb]'") from error
    return chosen
