"""Measurements of the suite and of the machine it runs on: `python -m experiments.NAME`."""
