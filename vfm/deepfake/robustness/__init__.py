"""Robustness of deepfake detectors: corruptions, what they cost, and the page that says so."""
