"""A1 and A2: does it matter how the truncation time τ is drawn?

The four arms have the same expected gradient (Kim et al. 2022, section 4.3): one τ a mini-batch, as in the paper;
eight, as on eight devices; one an image; and none, where the loss has the weight g² P(τ <= t) and times to go with it.
All share initial weights, order of data, z and u of a seed.

Command:  python -m score_st.study --study studies/randomness.py
"""

from score_st.studies import DIGITS, NO_TAU, SAMPLER, At, BitsPerDim, Comparison, Part, Samples, Study, grid

BASE = "vp/DIGITS/ddpmpp_nll_st_official"
SETTINGS = {**DIGITS, **SAMPLER}
TAU = {
    "one": {"training.tau_groups": 1},
    "eight": {"training.tau_groups": 8},
    "each": {"training.tau_groups": 32},
    "none": NO_TAU,
}
RATES = {"half": {"optim.lr": 1e-3}, "": {"optim.lr": 2e-3}, "double": {"optim.lr": 4e-3}}
MEASURES = (BitsPerDim(), Samples(num=1500, features=("digits",), metrics=("kid",)))
NOISE = "with the same mean, the gradient of one τ has 1.4 to 1.7 times the variance at batch 32, 2.4 to 5 at 128"


def best(arm: str) -> At:
    """Returns the arm at the learning rate that is best for it."""
    return At((f"A1/{arm}-half", f"A1/{arm}", f"A1/{arm}-double"))


STUDY = Study(
    title="Does the randomness of τ matter?",
    parts={
        "A1": Part(
            "τ one a batch, eight, one an image, none; batch 32, no clipping, three learning rates",
            BASE,
            grid(TAU, RATES),
            seeds=8,
            steps=(3000,),
            measures=MEASURES,
            settings=SETTINGS,
        ),
        "A2-clipped": Part(
            "the same with gradients clipped to the norm 1",
            BASE,
            TAU,
            seeds=8,
            steps=(3000,),
            measures=MEASURES,
            settings={**SETTINGS, "optim.grad_clip": 1.0},
        ),
        "A2-batch128": Part(
            "the same with batch 128, at equal images (step 750) and at equal steps",
            BASE,
            {**TAU, "each": {"training.tau_groups": 128}},
            seeds=8,
            steps=(750, 3000),
            measures=MEASURES,
            settings={**SETTINGS, "training.batch_size": 128},
        ),
    },
    comparisons=(
        Comparison(
            "Does one random τ a batch cost likelihood beside no random τ?",
            "nll",
            At("A1/one"),
            At("A1/none"),
            expect="higher",
            why=NOISE,
        ),
        Comparison("The same, each at its own best learning rate?", "nll", best("one"), best("none")),
        Comparison("One τ an image beside none?", "nll", At("A1/each"), At("A1/none")),
        Comparison("Eight τ a batch beside none?", "nll", At("A1/eight"), At("A1/none")),
        Comparison("The raw weights of one τ a batch beside none?", "nll", At("A1/one", "raw"), At("A1/none", "raw")),
        Comparison("Samples of one τ a batch beside none?", "KID-digits", At("A1/one"), At("A1/none")),
        Comparison("Samples, each at the rate where its KID is best?", "KID-digits", best("one"), best("none")),
        Comparison(
            "With clipping, does one random τ a batch cost likelihood beside no random τ?",
            "nll",
            At("A2-clipped/one"),
            At("A2-clipped/none"),
            expect="higher",
            why="clipping takes the scale Z(τ) away from nearly every step, so that their means no longer agree",
        ),
        Comparison("With clipping, samples?", "KID-digits", At("A2-clipped/one"), At("A2-clipped/none")),
        Comparison(
            "With clipping, eight τ a batch beside none?", "nll", At("A2-clipped/eight"), At("A2-clipped/none")
        ),
        Comparison("With clipping, one τ an image beside none?", "nll", At("A2-clipped/each"), At("A2-clipped/none")),
        Comparison("Does clipping cost one τ a batch likelihood?", "nll", At("A2-clipped/one"), At("A1/one")),
        Comparison("Does clipping cost training without τ likelihood?", "nll", At("A2-clipped/none"), At("A1/none")),
        Comparison(
            "With batch 128, does one random τ a batch cost likelihood beside no random τ?",
            "nll",
            At("A2-batch128/one"),
            At("A2-batch128/none"),
            expect="higher",
            why="the part of the variance that comes from τ stays as the batch grows; " + NOISE,
        ),
        Comparison(
            "The same at as many images as A1?",
            "nll",
            At("A2-batch128/one", step=750),
            At("A2-batch128/none", step=750),
        ),
        Comparison(
            "With batch 128, one τ an image beside none?", "nll", At("A2-batch128/each"), At("A2-batch128/none")
        ),
        Comparison("With batch 128, eight τ beside none?", "nll", At("A2-batch128/eight"), At("A2-batch128/none")),
        Comparison("With batch 128, samples?", "KID-digits", At("A2-batch128/one"), At("A2-batch128/none")),
        Comparison(
            "At as many images, batch 128 beside batch 32, with one τ?",
            "nll",
            At("A2-batch128/one", step=750),
            At("A1/one"),
        ),
        Comparison(
            "At as many images, batch 128 beside batch 32, without τ?",
            "nll",
            At("A2-batch128/none", step=750),
            At("A1/none"),
        ),
    ),
)
