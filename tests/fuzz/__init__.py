"""Fuzzing of everything that reads what strangers made: `python -m tests.fuzz --seconds 600`."""
