"""Figures of a trained model: bits/dim, samples and their quality, computed on all devices and resumable."""
