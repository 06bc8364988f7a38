"""Settings that several studies have in common."""

# DPM-Solver++ with 20 steps
SAMPLER = {
    "sampling.method": "pc",
    "sampling.predictor": "dpm_solver_2m",
    "sampling.grid": "logsnr",
    "sampling.steps": 20,
}
PLAIN = {"training.likelihood_weighting": True, "optim.grad_clip": -1.0}  # g², without clipping
# a network of the digits that trains in a minute
DIGITS = {"model.nf": 24, "model.ch_mult": (1, 1), "training.batch_size": 32, **PLAIN}
# Soft Truncation in expectation: no random τ
NO_TAU = {"training.st": False, "training.weighting": "softened", "training.time_sampler": "softened"}
