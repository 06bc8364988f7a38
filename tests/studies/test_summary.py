"""study.json, tables and page, from stored results with known numbers."""

import dataclasses
import json

import pytest
from support import tiny_study
from support.commands import ROOT

from score_st import study as command
from score_st.config import ConfigError
from score_st.runtime import cli
from score_st.studies import At, cells, definition, report, summary

FILE = ROOT / "tests/support/tiny_study.py"
# at step 4, by cell and seed
NELBO = {"T/one": (3.0, 4.0), "T/each": (1.0, 1.5)}


def store(out, only=lambda name, seed: True) -> None:
    for cell in tiny_study.STUDY.cells:
        results = cells.Results(cell, out, writes=True)
        for seed in range(cell.seeds):
            for name, (_, step) in results.jobs(seed) if only(cell.name, seed) else ():
                value = NELBO[cell.name][seed] * (1 if step == 4 else 10)
                figures = {"training/loss": 5.0} if name == cells.TRAINING else {"ema/nelbo": value}
                results.lines[name]((seed, step), lambda figures=figures: figures)


def test_means_differences_and_what_came(tmp_path):
    """The differences are 2.25 and 22.5, at step 2; two seeds leave the interval wide."""
    summary.register(tiny_study.STUDY, tmp_path)
    store(tmp_path)
    report.write(tiny_study.STUDY, tmp_path)
    content = json.loads((tmp_path / "study.json").read_text())
    figures = content["parts"]["T"]["cells"]["one"]["figures"]
    (last,) = (entry for entry in figures if entry["step"] == 4 and entry["figure"] == "nelbo")
    assert (last["mean"], last["values"], last["seeds"]) == (3.5, [3.0, 4.0], 2)
    assert last["high"] - last["mean"] == pytest.approx(12.7062 * 0.5, rel=1e-4)  # t with 1 degree of freedom
    first, second = content["comparisons"]
    assert (first["difference"], second["difference"]) == (2.25, 22.5)
    assert (first["primary"], first["late"], first["came"]) == (True, False, "undecided")
    assert (second["primary"], second["came"]) == (False, "")
    text, page = (tmp_path / "tables.md").read_text(), (tmp_path / "study.html").read_text()
    assert "| one | 4 | ema |" in text and "3.5 ± 6.4" in text and "a is higher than b" in text
    assert "2.2 (" in page and (tmp_path / "T.png").stat().st_size > 1000


def test_pairs_have_a_ratio_too(tmp_path):
    """3/1 and 4/1.5 seed by seed: 2.83."""
    first, second = tiny_study.STUDY.comparisons
    study = dataclasses.replace(tiny_study.STUDY, comparisons=(dataclasses.replace(first, paired=True), second))
    store(tmp_path)
    report.write(study, tmp_path)
    paired, other = json.loads((tmp_path / "study.json").read_text())["comparisons"]
    assert paired["ratio"]["mean"] == pytest.approx((3 + 4 / 1.5) / 2) and "ratio" not in other
    text = (tmp_path / "tables.md").read_text()
    assert "| a − b (95 %) | a / b | what came |" in text and "2.8 ± 2.1 |" in text


def test_what_is_expected_afterwards_is_late(tmp_path):
    """What was written down before the first result stays, whatever the file says later."""
    summary.register(tiny_study.STUDY, tmp_path)
    store(tmp_path, only=lambda name, seed: name == "T/one" and seed == 0)
    first, second = tiny_study.STUDY.comparisons
    changed = dataclasses.replace(first, expect="lower")
    added = dataclasses.replace(second, question="New?", expect="lower")
    study = dataclasses.replace(tiny_study.STUDY, comparisons=(changed, second, added))
    for tell in (lambda: None, lambda: summary.register(study, tmp_path)):  # a page alone writes nothing down
        tell()
        old, _, new = summary.summarize(study, tmp_path)["comparisons"]
        assert (old["expected"]["expect"], old["late"]) == ("higher", False)
        assert (new["expected"]["expect"], new["late"], new["primary"]) == ("lower", True, False)


def test_expectations_may_change_before_the_first_result(tmp_path):
    summary.register(tiny_study.STUDY, tmp_path)
    first, second = tiny_study.STUDY.comparisons
    study = dataclasses.replace(tiny_study.STUDY, comparisons=(dataclasses.replace(first, expect="lower"), second))
    summary.register(study, tmp_path)
    assert summary.written(tmp_path)[first.question]["expected"]["expect"] == "lower"


def test_the_best_of_several_cells(tmp_path):
    store(tmp_path)
    table = summary.Table(tiny_study.STUDY, tmp_path)
    best, values = table.at(At(("T/one", "T/each")), "nelbo")
    assert (best, values) == ("T/each", {0: 1.0, 1: 1.5})


def test_a_seed_without_figures(tmp_path):
    """A network that diverged counts in no mean, and the table says how many seeds there are."""
    for cell in tiny_study.STUDY.cells:
        results = cells.Results(cell, tmp_path, writes=True)
        for seed in range(cell.seeds):
            for name, job in results.jobs(seed):
                results.lines[name](job, lambda seed=seed: {"ema/nelbo": 3.0} if seed else {})
    content = summary.summarize(tiny_study.STUDY, tmp_path)
    assert all(cell["seeds_complete"] == 2 for cell in content["parts"]["T"]["cells"].values())
    assert {entry["seeds"] for entry in content["parts"]["T"]["cells"]["one"]["figures"]} == {1}
    assert content["comparisons"][0]["low"] is None


@pytest.mark.parametrize(("row", "panel"), [("raw", "nelbo, raw"), ("ema, ε = 0.01", "nelbo, ε = 0.01")])
def test_other_weights_and_another_epsilon_are_drawn_apart(tmp_path, row, panel):
    """A panel has figures of one scale: those of EMA and raw weights share their rows, not their axis."""
    first, second = tiny_study.STUDY.comparisons
    other = dataclasses.replace(first, a=At("T/one", row), b=At("T/each", row), expect="", question="Other?")
    study = dataclasses.replace(tiny_study.STUDY, comparisons=(first, second, other))
    for cell in study.cells:
        results = cells.Results(cell, tmp_path, writes=True)
        for seed in range(cell.seeds):
            for name, job in results.jobs(seed):
                figures = {"ema/nelbo": 2.0 + seed, f"{row}/nelbo": 20.0 + seed, f"{row}/nll": 30.0}
                results.lines[name](job, lambda figures=figures: figures)
    content = summary.summarize(study, tmp_path)
    panels = report.plotted(content["parts"]["T"], report.of_part(content, "T"))
    means = {panel: {row.name: row.mean for row in rows} for panel, rows in panels.items()}
    assert means == {"nelbo": {"one": 2.5, "each": 2.5}, panel: {"one": 20.5, "each": 20.5}}


def test_the_command_only_reports(tmp_path, capsys):
    store(tmp_path)
    command.main(["--study", str(FILE), "--out", str(tmp_path), "--report-only"])
    assert "study.html" in capsys.readouterr().out and (tmp_path / "tables.md").exists()
    command.main(["--study", str(FILE), "--out", str(tmp_path), "--dry-run"])
    assert "T/one   2 of 2 seeds done  0:00:00 left" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds=2", "seeds=1", "part T: should have two seeds or more"),
        ("steps=(2, 4)", "steps=(4, 2)", "steps that ascend"),
        ('"training.tau_groups": 1}', '"training.tau_group": 1}', "cell T/one: --config.training.tau_group: unknown"),
        (
            '"training.tau_groups": 1}',
            '"training.weighting": "softened"}',
            "cell T/one: config.training.weighting=soft",
        ),
        ('At("T/one"), At', 'At("T/on"), At', "no cell T/on; choose from T/one, T/each"),
        ("step=2", "step=3", "T/one is not measured at step 3"),
        ('expect="higher"', 'expect="more"', "expect='more'; choose from lower, higher, same"),
        ('expect="higher"', 'expect="same"', "a margin above 0 goes with expect='same'"),
        ('why="noise"', "size=(0.2, 0.1)", "size=(0.2, 0.1); should be (lower, upper)"),
        (
            'expect="higher", why="noise"',
            "size=(0.1, 0.2)",
            "size=(0.1, 0.2); should be (lower, upper), and goes with",
        ),
        ("STUDY = ", "MINE = ", "should define STUDY"),
    ],
)
def test_studies_that_are_wrong(tmp_path, old, new, message):
    text = FILE.read_text().replace('Path(__file__).with_name("small.py")', repr(str(FILE.with_name("small.py"))))
    assert old in text
    (tmp_path / "mine.py").write_text(text.replace(old, new))
    with pytest.raises(ConfigError) as error:
        definition.read(tmp_path / "mine.py")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_requests_that_are_wrong(tmp_path, capsys):
    for arguments, message in (
        (["--study", "none.py"], "--study none.py: no such file"),
        (["--study", str(FILE), "--cells", "U/*"], "--cells U/*: no such cell; choose from T/one, T/each"),
        (["--study", str(FILE), "--out", "gs://bucket/x"], "should be a folder"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.run(lambda arguments=arguments: command.main(arguments))
        assert stop.value.code == 2 and message in capsys.readouterr().err


def test_grids():
    cells_of = definition.grid({"a": {"x": 1}, "b": {"x": 2}}, {"": {}, "fast": {"y": 3}})
    assert cells_of == {"a": {"x": 1}, "a-fast": {"x": 1, "y": 3}, "b": {"x": 2}, "b-fast": {"x": 2, "y": 3}}


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.py")), ids=lambda path: path.stem)
def test_the_studies_of_the_package(path):
    """Every cell can be built as far as that needs no device, and every part has one primary comparison."""
    if path.stem.startswith("train_"):
        return
    study = definition.read(path)
    stated = [comparison.a.cells[0].split("/")[0] for comparison in study.comparisons if comparison.expect]
    assert stated and len(set(stated)) == len(stated)
