"""Linear heads with given settings: each solver, its scaling, and what is no linear map."""

import numpy as np
import pytest
from vfm_runtime.errors import OptionError

from vfm.heads_on_features import Candidate
from vfm.heads_on_features.cross_validation import FoldFitter
from vfm.heads_on_features.fit import fit_candidate
from vfm.models.heads import LinearHead

GENERATOR = np.random.default_rng(0)
TARGET = np.arange(60) % 3
FEATURES = GENERATOR.normal(size=(3, 8))[TARGET] + GENERATOR.normal(size=(60, 8))


@pytest.mark.parametrize(
    "candidate",
    [
        Candidate("logistic", "standardized", c=0.1),
        Candidate("logistic", "l2", c=10.0),
        Candidate("lda", "none"),
        Candidate("lda", "l2"),
        Candidate("nearest_mean", "none"),
    ],
)
def test_a_head_is_fitted_as_it_is_judged(candidate: Candidate) -> None:
    train, others = slice(0, 45), slice(45, 60)
    affine = fit_candidate(candidate, FEATURES[train], TARGET[train], num_labels=3)
    fitter = FoldFitter(FEATURES[train], TARGET[train], 3, None, False)
    ((_, judged),) = fitter.score([candidate], FEATURES[others])
    logits = affine.compute_logits(FEATURES[others])
    assert logits == pytest.approx(judged, abs=1e-3)
    assert affine.normalizes == (candidate.scaling == "l2" or candidate.head == "nearest_mean")


def test_what_is_no_linear_map_is_refused() -> None:
    for candidate in (Candidate("neighbors"), Candidate("nearest_mean", "l2")):
        with pytest.raises(
            OptionError, match=r"is no linear map of features for one label\. Choices"
        ):
            fit_candidate(candidate, FEATURES, TARGET, num_labels=3)
    with pytest.raises(OptionError, match="for several labels"):
        fit_candidate(
            Candidate("lda", "none"), FEATURES, np.eye(3)[TARGET], num_labels=3, multilabel=True
        )


def test_c_without_its_scaling_is_refused() -> None:
    with pytest.raises(OptionError, match=r"c is 0.1 and scaling is None.*Give both, or neither"):
        LinearHead(c=0.1)
    with pytest.raises(OptionError, match=r"c is -1\.0\. Give a number above 0"):
        LinearHead(c=-1.0, scaling="l2")
