"""Analyses of data, processes and models beside the scores of samples."""
