"""B: weightings of the loss, as weights and as priors of τ.

σ² has no prior on VP, as σ²/g² falls from t = 0.350 on (Kim et al. 2022, theorem 1); `raised_variance` is the smallest
weighting above it that has one. Used as a weight and as its prior P_λ it has the same expected loss.

Command:  python -m score_st.study --study studies/weights.py
"""

from score_st.studies import DIGITS, SAMPLER, At, BitsPerDim, Comparison, Part, Samples, Study

SETTINGS = {**DIGITS, **SAMPLER, "training.tau_groups": 1}
WEIGHTS = {
    "g2": {"training.st": False},
    "g2-st": {"training.st": True, "training.k": 1.0},
    "sigma2": {"training.st": False, "training.weighting": "variance", "training.time_sampler": "uniform"},
}
RAISED = {
    "raised": {"training.st": False, "training.weighting": "raised_variance", "training.time_sampler": "uniform"},
    "raised-prior": {
        "training.st": True,
        "training.weighting": "likelihood",
        "training.truncation_prior": "weighting",
        "training.truncation_weighting": "raised_variance",
    },
}
PRECONDITIONED = {
    "training.unbounded_parametrization": False,
    "model.parametrization": "edm",
    "model.time_conditioning": "log_noise_level",
    "model.data_mean": -0.3663,
    "model.data_std": 0.7086,
}
IDODE = {"training.time_sampler": "idode", "training.weighting": "likelihood"}
PART = dict(base="vp/DIGITS/ddpmpp_nll_st_official", seeds=8, steps=(3000,))
MEASURES = (BitsPerDim(), Samples(num=1500, features=("digits",), metrics=("kid",)))

STUDY = Study(
    title="Weightings of the loss, as weights and as priors of τ",
    parts={
        "B": Part(
            "the official parametrization",
            cells={**WEIGHTS, **RAISED},
            measures=MEASURES,
            settings=SETTINGS,
            **PART,
        ),
        "B-preconditioned": Part(
            "preconditioned, with importance and with i-DODE's times",
            cells={
                **WEIGHTS,
                "g2-idode": {**WEIGHTS["g2"], **IDODE},
                "g2-st-idode": {**WEIGHTS["g2-st"], **IDODE},
            },
            measures=MEASURES,
            settings={**SETTINGS, **PRECONDITIONED},
            **PART,
        ),
    },
    comparisons=(
        Comparison(
            "Does Soft Truncation with k = 1 keep the likelihood of the g² weighting?",
            "nll",
            At("B/g2-st"),
            At("B/g2"),
            expect="same",
            margin=0.04,
            why="claim 3: with the g² weighting, Soft Truncation keeps the NLL",
        ),
        Comparison("Does it improve samples?", "KID-digits", At("B/g2-st"), At("B/g2")),
        Comparison("σ² beside g²: likelihood?", "nll", At("B/sigma2"), At("B/g2")),
        Comparison("σ² beside g²: samples?", "KID-digits", At("B/sigma2"), At("B/g2")),
        Comparison("Soft Truncation beside σ²: samples?", "KID-digits", At("B/g2-st"), At("B/sigma2")),
        Comparison(
            "The raised σ² as a prior beside the same as a weight?", "nll", At("B/raised-prior"), At("B/raised")
        ),
        Comparison("The same: samples?", "KID-digits", At("B/raised-prior"), At("B/raised")),
        Comparison("The raised σ² beside σ²?", "nll", At("B/raised"), At("B/sigma2")),
        Comparison(
            "Preconditioned, with i-DODE's times: does Soft Truncation improve the likelihood?",
            "nll",
            At("B-preconditioned/g2-st-idode"),
            At("B-preconditioned/g2-idode"),
            expect="lower",
            size=(-0.05, -0.025),
            why="one seed each, two settings: 1.801 and 1.799 with it, 1.836 and 1.838 without",
        ),
        Comparison(
            "Preconditioned, with importance times: does it?",
            "nll",
            At("B-preconditioned/g2-st"),
            At("B-preconditioned/g2"),
            why="one seed each: 1.872 with it, 1.852 without, the other way round",
        ),
        Comparison(
            "Preconditioned, σ² beside g²: samples?",
            "KID-digits",
            At("B-preconditioned/sigma2"),
            At("B-preconditioned/g2"),
        ),
        Comparison(
            "Preconditioned, with i-DODE's times: samples?",
            "KID-digits",
            At("B-preconditioned/g2-st-idode"),
            At("B-preconditioned/g2-idode"),
        ),
        Comparison("g²: preconditioned beside official?", "nll", At("B-preconditioned/g2"), At("B/g2")),
        Comparison(
            "g², preconditioned: i-DODE's times beside importance times?",
            "nll",
            At("B-preconditioned/g2-idode"),
            At("B-preconditioned/g2"),
        ),
    ),
)
