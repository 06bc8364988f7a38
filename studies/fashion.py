"""C to H: Soft Truncation on Fashion-MNIST at 16x16, with distances of samples.

C and D take hours on a laptop; E to H are for more time or an accelerator. Claims are those of Kim et al. 2022.

Command:  python -m score_st.study --study studies/fashion.py --cells 'C/*'
"""

from score_st.studies import (
    NO_TAU,
    PLAIN,
    SAMPLER,
    At,
    BitsPerDim,
    Comparison,
    Experts,
    LossByTime,
    Part,
    Samples,
    Study,
    grid,
)

BASE = "vp/FASHION_MNIST/ddpmpp_nll_st_official"
SETTINGS = {**PLAIN, **SAMPLER, "data.image_size": 16, "training.tau_groups": 1}
WITHOUT, ST = {"training.st": False}, {"training.st": True, "training.k": 1.0}
SIGMA2 = {"training.st": False, "training.weighting": "variance", "training.time_sampler": "uniform"}
PRECONDITIONED = {
    "training.unbounded_parametrization": False,
    "model.parametrization": "edm",
    "model.time_conditioning": "log_noise_level",
    "model.data_mean": -0.5594,
    "model.data_std": 0.6243,
}
# images in [0, 1], the network gives the score times σ and is told σ
VE = {
    "training.sde": "vesde",
    "training.importance_sampling": False,
    "training.likelihood_weighting": False,
    "training.unbounded_parametrization": False,
    "data.centered": False,
    "model.embedding_type": "fourier",
    "model.scale_by_sigma": True,
    "model.sigma_max": 20.0,
}
RVE = {**VE, "training.sde": "reciprocal_vesde", "training.eta": 1e-3, "model.sigma_min": 1e-3}

SMALL, LARGE = ("fashion-mnist",), ("efficientnet-lite0",)
FD, LITE = "FD-fashion-mnist", "FD-efficientnet-lite0"
BITS = BitsPerDim(images=500)
FIXED = "ema, fixed below 1"
FIXED_SETTINGS = {"model.sigma_min": 1e-3, "training.st": False, "training.k": 1.0}
DISTANCES = (Samples(5000, SMALL), Samples(5000, LARGE, weights=("ema",)))


def epsilon(value: float) -> dict[str, float]:
    """The smallest time of training and of sampling."""
    return {"training.truncation_time": value, "sampling.truncation_time": value}


def part(title: str, cells, measures=(BITS, *DISTANCES), seeds: int = 5, steps=(3000,), settings=SETTINGS) -> Part:
    """Returns a part on Fashion-MNIST."""
    return Part(title, BASE, cells, seeds, steps, measures, settings)


STUDY = Study(
    title="Soft Truncation on Fashion-MNIST at 16x16",
    parts={
        "C": part(
            "weightings, official and preconditioned",
            grid({"g2": WITHOUT, "g2-st": ST, "sigma2": SIGMA2}, {"": {}, "preconditioned": PRECONDITIONED}),
            measures=(BitsPerDim(images=500, eps=(1e-2, 1e-3, 1e-4)), LossByTime(images=500), *DISTANCES),
        ),
        "D": part(
            "τ: one an image, none (one a batch is C/g2-st)",
            {
                "each": {**ST, "training.tau_groups": 32},
                "none": NO_TAU,
            },
        ),
        "E-vp": part(
            "k for VP (k = 1 and no Soft Truncation are C/g2-st and C/g2)",
            {
                "k0": {**ST, "training.k": 0.0},
                "k2": {**ST, "training.k": 2.0},
            },
        ),
        "E-rve": part(
            "k for RVE",
            {"k1": {**RVE, **ST}, "k2": {**RVE, **ST, "training.k": 2.0}, "without": {**RVE, **WITHOUT}},
        ),
        "F": part(
            "the smallest time ε of training and sampling (1e-5 is C)",
            grid({"g2": WITHOUT, "g2-st": ST}, {"1e-2": epsilon(1e-2), "1e-3": epsilon(1e-3)}),
        ),
        "G": part(
            "σ_min of VE, and one network for σ > 1 with a fixed one below",
            grid(
                {"": {**WITHOUT, **VE}, "st": {**ST, "training.k": 2.0, **VE}},
                {"1e-2": {"model.sigma_min": 1e-2}, "1e-3": {"model.sigma_min": 1e-3}},
            ),
            measures=(BITS, *DISTANCES, Experts(5000, SMALL, below=1.0, fixed=FIXED_SETTINGS)),
        ),
        "H": part(
            "a longer training",
            {"g2": WITHOUT, "g2-st": ST},
            measures=(Samples(5000, SMALL),),
            seeds=3,
            steps=tuple(range(2500, 20001, 2500)),
        ),
    },
    comparisons=(
        Comparison(
            "Does Soft Truncation with k = 1 bring samples closer to the data than the g² weighting?",
            FD,
            At("C/g2-st"),
            At("C/g2"),
            expect="lower",
            why="claim 3",
        ),
        Comparison("Does it keep the likelihood?", "nll", At("C/g2-st"), At("C/g2"), why="claim 3"),
        Comparison(
            "Is its distance that of the variance weighting?", FD, At("C/g2-st"), At("C/sigma2"), why="claim 3"
        ),
        Comparison("The likelihood of σ² beside g²?", "nll", At("C/sigma2"), At("C/g2")),
        Comparison(
            "The loss at t > 0.1 with it?", "bits above t = 0.1", At("C/g2-st"), At("C/g2"), why="claim 5: falls"
        ),
        Comparison(
            "The loss at t < 0.1?", "bits below t = 0.1", At("C/g2-st"), At("C/g2"), why="claim 5: hardly rises"
        ),
        Comparison(
            "One network at ε = 1e-4 beside 1e-3: likelihood?",
            "nll",
            At("C/g2-st", "ema, ε = 0.0001"),
            At("C/g2-st", "ema, ε = 0.001"),
            paired=True,
            why="claim 1: it falls with ε",
        ),
        Comparison(
            "At ε = 1e-5 beside 1e-4?",
            "nll",
            At("C/g2-st"),
            At("C/g2-st", "ema, ε = 0.0001"),
            paired=True,
            why="claim 1: it falls with ε",
        ),
        Comparison("EfficientNet's features: the same?", LITE, At("C/g2-st"), At("C/g2")),
        Comparison("The same by KID?", "KID-fashion-mnist", At("C/g2-st"), At("C/g2")),
        Comparison("Preconditioned: samples?", FD, At("C/g2-st-preconditioned"), At("C/g2-preconditioned")),
        Comparison("Preconditioned: likelihood?", "nll", At("C/g2-st-preconditioned"), At("C/g2-preconditioned")),
        Comparison(
            "Preconditioned: Soft Truncation beside σ²?",
            FD,
            At("C/g2-st-preconditioned"),
            At("C/sigma2-preconditioned"),
        ),
        Comparison("Preconditioned: EfficientNet?", LITE, At("C/g2-st-preconditioned"), At("C/g2-preconditioned")),
        Comparison(
            "Preconditioned: σ² beside g², samples?", FD, At("C/sigma2-preconditioned"), At("C/g2-preconditioned")
        ),
        Comparison(
            "Preconditioned: the same, likelihood?", "nll", At("C/sigma2-preconditioned"), At("C/g2-preconditioned")
        ),
        Comparison("g², preconditioned beside official: samples?", FD, At("C/g2-preconditioned"), At("C/g2")),
        Comparison("g², preconditioned beside official: likelihood?", "nll", At("C/g2-preconditioned"), At("C/g2")),
        Comparison("g², preconditioned beside official: EfficientNet?", LITE, At("C/g2-preconditioned"), At("C/g2")),
        Comparison(
            "Does one τ an image bring samples as close as none?",
            FD,
            At("D/each"),
            At("D/none"),
            expect="same",
            margin=5.0,
            why="the same mean and, at batch 32, nearly the same variance of the gradient",
        ),
        Comparison("One τ a batch beside none: samples?", FD, At("C/g2-st"), At("D/none")),
        Comparison("One τ a batch beside none: likelihood?", "nll", At("C/g2-st"), At("D/none")),
        Comparison("Without a random τ, beside g²: samples?", FD, At("D/none"), At("C/g2")),
        Comparison("Without a random τ, beside g²: likelihood?", "nll", At("D/none"), At("C/g2")),
        Comparison("Without a random τ, beside g²: EfficientNet?", LITE, At("D/none"), At("C/g2")),
        Comparison(
            "VP, k = 0 beside k = 1: likelihood?", "nll", At("E-vp/k0"), At("C/g2-st"), expect="higher", why="claim 4"
        ),
        Comparison("VP, k = 0 beside k = 1: samples?", FD, At("E-vp/k0"), At("C/g2-st"), why="claim 4: worse"),
        Comparison("VP, k = 2 beside k = 1: samples?", FD, At("E-vp/k2"), At("C/g2-st"), why="claim 4: worse"),
        Comparison(
            "RVE, k = 2 beside none: samples?", FD, At("E-rve/k2"), At("E-rve/without"), expect="lower", why="claim 4"
        ),
        Comparison("RVE, k = 2 beside k = 1: samples?", FD, At("E-rve/k2"), At("E-rve/k1"), why="claim 4: better"),
        Comparison(
            "Without Soft Truncation, does the distance rise as ε falls from 1e-2 to 1e-3?",
            FD,
            At("F/g2-1e-3"),
            At("F/g2-1e-2"),
            expect="higher",
            why="claim 2",
        ),
        Comparison("From 1e-3 to 1e-5?", FD, At("C/g2"), At("F/g2-1e-3"), why="claim 2: it rises"),
        Comparison(
            "With it, from 1e-2 to 1e-3?", FD, At("F/g2-st-1e-3"), At("F/g2-st-1e-2"), why="claim 2: it does not"
        ),
        Comparison("With it, from 1e-3 to 1e-5?", FD, At("C/g2-st"), At("F/g2-st-1e-3"), why="claim 2: it does not"),
        Comparison(
            "VE without it: does the distance rise as σ_min falls from 1e-2 to 1e-3?",
            FD,
            At("G/1e-3"),
            At("G/1e-2"),
            expect="higher",
            why="table 1",
        ),
        Comparison("VE with it?", FD, At("G/st-1e-3"), At("G/st-1e-2"), why="claim 2: it does not"),
        Comparison(
            "VE, with one fixed network below σ = 1: the same?",
            FD,
            At("G/1e-3", FIXED),
            At("G/1e-2", FIXED),
            why="table 2: it is the large times that spoil samples",
        ),
        Comparison(
            "At the end of 20,000 steps, are samples with Soft Truncation closer?",
            FD,
            At("H/g2-st"),
            At("H/g2"),
            expect="lower",
            why="claim 6, figure 8",
        ),
        Comparison(
            "After 2,500 steps?", FD, At("H/g2-st", step=2500), At("H/g2", step=2500), why="claim 6: later only"
        ),
    ),
)
