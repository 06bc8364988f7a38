"""Checkpoints of the official PyTorch code, read and written without torch."""
