"""Robustness of deepfake detectors: degradations, what they cost, and the page that says so."""
