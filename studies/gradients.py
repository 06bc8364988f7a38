"""A0: what of the gradient's noise comes from τ?

At the weights of runs with one τ a batch, after 100, 500 and 3,000 steps: 256 gradients of each way to draw τ, two for
each draw of τ. The trace of their covariance is E Var(g|τ) + Var E(g|τ), both without bias, before clipping; "(Adam)"
is the same after division by √v̂. Each seed is a run; the arms are compared run by run.

Command:  python -m score_st.study --study studies/gradients.py
"""

from score_st.studies import DIGITS, NO_TAU, At, Comparison, Gradients, Part, Study

ARMS = {
    "one": {"training.tau_groups": 1},
    "eight": {"training.tau_groups": 8},
    "each": {"training.tau_groups": "{batch}"},
    "none": NO_TAU,
}
MEANS = "distance of means"  # squared, in units of that of the mean, without bias: 0 for the same mean


def compare(question: str, figure: str, a: str, b: str = "", step: int = 500, **others) -> Comparison:
    """Returns a comparison of two rows at the weights of the same runs, or of one with zero."""
    second = At("A0/run", b, step) if b else None
    return Comparison(question, figure, At("A0/run", a, step), second, paired=True, **others)


STUDY = Study(
    title="What of the gradient's noise comes from τ?",
    parts={
        "A0": Part(
            "gradients at the weights of runs with one τ a batch",
            "vp/DIGITS/ddpmpp_nll_st_official",
            {"run": {"training.tau_groups": 1}},
            seeds=8,
            steps=(100, 500, 3000),
            measures=(Gradients(ARMS),),
            settings=DIGITS,
        )
    },
    comparisons=(
        compare(
            "Does the part of the variance that comes from one τ stay as the batch grows from 32 to 128?",
            "Var E(g|τ)",
            "one, batch 128",
            "one, batch 32",
            expect="same",
            margin=0.5,
            why="E(g|τ) does not depend on the batch; totals of 7.6 and 3.35 would leave 1.9 of it at any",
        ),
        compare("Has the gradient of one τ the same mean as that of none, batch 32?", MEANS, "one, batch 32"),
        compare("That of eight?", MEANS, "eight, batch 32"),
        compare("That of one an image?", MEANS, "each, batch 32"),
        compare("And the rest?", "E Var(g|τ)", "one, batch 128", "one, batch 32"),
        compare("The total of one τ beside none, batch 32?", "variance", "one, batch 32", "none, batch 32"),
        compare("The total of one τ beside none, batch 128?", "variance", "one, batch 128", "none, batch 128"),
        compare("One τ an image beside none, batch 32?", "variance", "each, batch 32", "none, batch 32"),
        compare(
            "The total of one τ beside none after Adam's scaling, batch 32?",
            "variance (Adam)",
            "one, batch 32",
            "none, batch 32",
        ),
        compare(
            "The total of one τ beside none after Adam's scaling, batch 128?",
            "variance (Adam)",
            "one, batch 128",
            "none, batch 128",
        ),
    ),
)
