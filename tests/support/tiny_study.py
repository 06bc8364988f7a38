"""A study of two tiny cells of the digits, a few steps each."""

from pathlib import Path

from score_st.studies import At, BitsPerDim, Comparison, Part, Study

EVALUATION = {
    "eval.batch_size": 8,
    "eval.group": 8,
    "eval.nelbo_iter": 1,
    "eval.nll_iter": 0,
    "training.time_sampler": "importance",
    "training.stratified": False,
}
STUDY = Study(
    title="Two tiny cells",
    parts={
        "T": Part(
            "how τ is drawn",
            str(Path(__file__).with_name("small.py")),
            {"one": {"training.tau_groups": 1}, "each": {"training.tau_groups": 16}},
            seeds=2,
            steps=(2, 4),
            measures=(BitsPerDim(images=8, weights=("ema",)),),
            settings=EVALUATION,
        )
    },
    comparisons=(
        Comparison("Is one τ worse?", "nelbo", At("T/one"), At("T/each"), expect="higher", why="noise"),
        Comparison("At step 2?", "nelbo", At("T/one", step=2), At("T/each", step=2)),
    ),
)
