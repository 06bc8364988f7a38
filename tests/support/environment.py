"""The environment of tests and of the processes that they start."""

from importlib.metadata import version

QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # compiles in half the time
if version("jaxlib").startswith("0.10."):  # and again in half; XLA ends a process that gives it a flag it doesn't know
    QUICK += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
# of `jax.jit`, for a program whose run takes longer than its compilation
OPTIMIZED = {"xla_backend_optimization_level": 2, "xla_llvm_disable_expensive_passes": False}
