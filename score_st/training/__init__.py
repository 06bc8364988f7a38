"""Training: the loop, the step, and what they carry along and store."""
