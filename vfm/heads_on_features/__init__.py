"""Heads on frozen features: kNN, nearest mean, LDA and logistic regression, and their choice by cross-validation."""

from vfm.heads_on_features.cross_validation import Candidate, CandidateScores, cross_validate
from vfm.heads_on_features.linear import Solved, solve_linear
from vfm.heads_on_features.logistic import SCALINGS, Scaling, fit_logistic_regression
from vfm.heads_on_features.neighbors import score_neighbors

__all__ = [
    "SCALINGS",
    "Candidate",
    "CandidateScores",
    "Scaling",
    "Solved",
    "cross_validate",
    "fit_logistic_regression",
    "score_neighbors",
    "solve_linear",
]
