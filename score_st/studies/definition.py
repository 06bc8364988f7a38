"""What a study is: parts with cells, seeds and measures, and comparisons with what was expected of them."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from score_st.config import ConfigError, changed, check, default, flatten, load, run_file
from score_st.diffusion import losses, samplers, truncation
from score_st.diffusion import sde as sdes
from score_st.studies.measures import Measure

Settings = Mapping[str, Any]  # values of configuration keys by dotted key
EXPECTATIONS = {
    "lower": "a is lower than b",
    "higher": "a is higher than b",
    "same": "a and b differ by less than margin",
}


def grid(*axes: Mapping[str, Settings]) -> dict[str, Settings]:
    """Returns every combination of one entry an axis; names are joined by "-", and an empty name leaves no trace."""
    cells: dict[str, Settings] = {}
    for entries in itertools.product(*(axis.items() for axis in axes)):
        name = "-".join(name for name, _ in entries if name)
        cells[name] = {key: value for _, settings in entries for key, value in settings.items()}
    return cells


@dataclasses.dataclass(frozen=True)
class Cell:
    """One configuration, trained with every seed.

    Attributes:
      name: part/name.
      config: but for its seed.
      seeds: of training: 0 ... seeds - 1.
      steps: at which the measures are taken, ascending; the last one ends training.
      measures: what is measured.
    """

    name: str
    config: ConfigDict
    seeds: int
    steps: tuple[int, ...]
    measures: tuple[Measure, ...]

    @property
    def changes(self) -> dict[str, Any]:
        """The values that differ from the defaults, so that a new key with its default changes no cell."""
        flat, usual = flatten(self.config), flatten(default())
        return {key: flat[key] for key in sorted(flat) if flat[key] != usual[key] and key != "seed"}


@dataclasses.dataclass(frozen=True)
class Part:
    """Cells that differ in what is compared and in nothing else.

    Attributes:
      title: what is varied.
      base: a configuration file, or the name of one in the package.
      settings: of all cells, on top of the base.
      cells: the settings of each cell by its name, on top of those.
      seeds: how many.
      steps: see `Cell`.
      measures: see `Cell`.
    """

    title: str
    base: str
    cells: Mapping[str, Settings]
    seeds: int
    steps: tuple[int, ...]
    measures: tuple[Measure, ...]
    settings: Settings = dataclasses.field(default_factory=dict)

    def cell(self, part: str, name: str) -> Cell:
        """Returns a cell, checked.

        Raises:
          ConfigError: a setting is unknown or impossible.
        """
        settings = {**self.settings, "training.n_iters": self.steps[-1], **self.cells[name]}
        try:
            config = changed(load(self.base), {key: str(value) for key, value in settings.items()})
            check(config)
            losses.from_config(config, sdes.from_config(config), groups=1)
            samplers.from_config(config)
            truncation.from_config(config)
        except ConfigError as error:
            raise ConfigError(f"cell {part}/{name}: {error}") from error
        return Cell(f"{part}/{name}", config, self.seeds, self.steps, self.measures)


@dataclasses.dataclass(frozen=True)
class At:
    """Where a figure stands.

    Attributes:
      cell: part/name, or several names: the one of them whose figure is lowest in the mean.
      row: of the measure, such as ema or raw.
      step: 0 is the last one.
    """

    cell: str | tuple[str, ...]
    row: str = "ema"
    step: int = 0

    @property
    def cells(self) -> tuple[str, ...]:
        """The names."""
        return (self.cell,) if isinstance(self.cell, str) else self.cell


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A contrast a − b of a figure, and what was expected of it before the first result.

    Attributes:
      question: in words; it names the comparison.
      figure: such as nll.
      a: one side.
      b: the other; None is zero.
      expect: one of EXPECTATIONS, or empty for an exploratory contrast of which nothing is expected.
      margin: of "same".
      size: lower and upper limit of a − b where the paper or an earlier measurement has a size.
      why: what the expectation rests on.
      paired: the seeds of both sides share their weights, so that differences are taken seed by seed.
    """

    question: str
    figure: str
    a: At
    b: At | None
    expect: str = ""
    margin: float = 0.0
    size: tuple[float, float] | None = None
    why: str = ""
    paired: bool = False

    @property
    def sides(self) -> tuple[At, ...]:
        """Both, or the only one."""
        return (self.a, self.b) if self.b else (self.a,)

    @property
    def cells(self) -> tuple[str, ...]:
        """The names of all cells that it needs."""
        return tuple(cell for side in self.sides for cell in side.cells)

    @property
    def expectation(self) -> dict[str, Any]:
        """What is written down before the first result."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "question"}


@dataclasses.dataclass(frozen=True)
class Study:
    """Parts by their names, in the order in which they are run, and comparisons.

    The first comparison of a part with an expectation is its primary one.
    """

    title: str
    parts: Mapping[str, Part]
    comparisons: tuple[Comparison, ...] = ()

    @functools.cached_property
    def cells(self) -> tuple[Cell, ...]:
        """All cells, checked; raises as `Part.cell`."""
        return tuple(part.cell(name, cell) for name, part in self.parts.items() for cell in part.cells)


def read(path: str | Path) -> Study:
    """Returns the study of a Python file that defines STUDY, checked without touching a device.

    Raises:
      ConfigError: there is no such file, it is no study, or a setting, step, cell or expectation of it is impossible.
    """
    where = f"--study {path}"
    if not Path(path).is_file():
        raise ConfigError(f"{where}: no such file; should be a Python file that defines STUDY")
    study = getattr(run_file(Path(path), "--study"), "STUDY", None)
    if not isinstance(study, Study):
        raise ConfigError(f"{where}: should define STUDY = score_st.studies.Study(…)")
    try:
        names = {cell.name: cell for cell in study.cells}
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    for name, part in study.parts.items():
        ascending = list(part.steps) == sorted(set(part.steps)) and part.steps and part.steps[0] > 0
        if not ascending or part.seeds < 2:
            raise ConfigError(f"{where}: part {name}: should have two seeds or more, and steps that ascend from 1 on")
        if len({measure.name for measure in part.measures}) < len(part.measures):
            raise ConfigError(f"{where}: part {name}: two measures share a name; each should have its own")
    for comparison in study.comparisons:
        about = f"{where}: comparison {comparison.question!r}"
        for cell in comparison.cells:
            if cell not in names:
                raise ConfigError(f"{about}: no cell {cell}; choose from {', '.join(names)}")
        for side in comparison.sides:
            if side.step and side.step not in names[side.cells[0]].steps:
                raise ConfigError(f"{about}: {side.cells[0]} is not measured at step {side.step}")
        if comparison.expect not in ("", *EXPECTATIONS):
            raise ConfigError(f"{about}: expect={comparison.expect!r}; choose from {', '.join(EXPECTATIONS)}")
        if (comparison.expect == "same") != (comparison.margin > 0):
            raise ConfigError(f"{about}: a margin above 0 goes with expect='same', and with nothing else")
        if comparison.size and not (comparison.expect and comparison.size[0] < comparison.size[1]):
            raise ConfigError(f"{about}: size={comparison.size}; should be (lower, upper), and goes with expect=")
    return study
