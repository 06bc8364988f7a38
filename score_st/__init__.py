"""Soft Truncation (Kim et al., ICML 2022, arXiv 2106.05527) in JAX."""
