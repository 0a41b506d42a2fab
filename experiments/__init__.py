"""Experiments with the suite: tables and figures of papers (`python -m experiments`), benchmarks and studies."""
