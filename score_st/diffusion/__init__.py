"""The mathematics: pure functions and frozen dataclasses on arrays, without files or devices."""
