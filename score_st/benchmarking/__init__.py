"""The benchmark: what a configuration costs on the devices at hand, compared with an earlier result or other code."""
