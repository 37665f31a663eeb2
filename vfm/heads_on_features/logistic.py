"""Logistic regression on frozen features: L2-penalized, solved by L-BFGS in coordinates that make it easy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit, softmax
from vfm_runtime.heads_on_features import AffineHead, scale_features

Scaling = Literal["none", "l2", "standardized"]
"""What features go through: nothing, division by their L2 norm, or division by the standard deviation of each."""
SCALINGS: tuple[Scaling, ...] = ("none", "l2", "standardized")

FloatArray = NDArray[np.float64]
_MOST_STEPS = 300
_TOLERANCE = 1e-5
_CERTAIN = 5e-3
"""Mean loss below which all training images are answered with certainty."""
_CHUNK = 16384
_MOST_ROWS = 8192
"""Rows from which the directions of large data are taken: they speed the search up, and change no result."""


def fit_logistic_regression(
    features: ArrayLike,
    target: ArrayLike,
    *,
    c: float,
    scaling: Scaling = "l2",
    num_labels: int | None = None,
    class_weights: ArrayLike | None = None,
    sample_weights: ArrayLike | None = None,
    multilabel: bool = False,
) -> AffineHead:
    """Fit logistic regression as scikit-learn's `LogisticRegression(C=c)` does, softmax or one sigmoid a label.

    Args:
        features: Embeddings, [N, D].
        target: Classes, int [N]; or with `multilabel` zeros and ones, [N, C].
        c: Inverse of the penalty, in units of the scaled features.
        scaling: What features go through; the head that is returned does it too.
        num_labels: Number of labels C; by default one more than the highest class.
        class_weights: How much each class counts, [C]; with `multilabel` where the label applies.
        sample_weights: How much each image counts, [N], 1 on average.
        multilabel: Whether several labels, or none, may apply to an image.
    """
    problem = Problem.build(
        features, target, scaling, num_labels, class_weights, multilabel, sample_weights
    )
    return next(iter(problem.solve_path([c])))


def compute_power(features: ArrayLike, scaling: Scaling) -> float:
    """Return the mean squared distance of scaled features from their mean: c times this means alike for any scaling."""
    values = scale_features(features, None, scaling == "l2")
    variances = values.var(axis=0)
    return float((variances > 0).sum() if scaling == "standardized" else variances.sum()) or 1.0


@dataclass(eq=False)
class Problem:
    """One data set of logistic regression, in coordinates in which it is cheap. N images, C labels, R directions.

    With N < D features lie in N dimensions, and the penalty keeps the weights there too. Along the principal directions
    the curvature of the loss is nearly known, so L-BFGS searches in variables for which it is alike everywhere: tens of
    steps in place of hundreds, for any c.
    """

    rows: FloatArray
    """float64 [N, R], or [N, D] where N is larger: centered features."""
    target: NDArray[Any]
    """int64 [N], or float64 [N, C]."""
    weights: FloatArray
    """float64 [N] for classes; [C] of the positives with several labels."""
    sample_weights: FloatArray
    """float64 [N], how much each image counts; for classes it is in `weights` too."""
    num_labels: int
    multilabel: bool
    basis: FloatArray
    """[D, R], orthonormal: the principal directions."""
    deviations: FloatArray
    """[R], standard deviation along each direction."""
    is_rotated: bool
    """Whether `rows` are coordinates along the directions."""
    mean: FloatArray
    scale: FloatArray
    normalizes: bool

    @classmethod
    def build(
        cls,
        features: ArrayLike,
        target: ArrayLike,
        scaling: Scaling,
        num_labels: int | None,
        class_weights: ArrayLike | None,
        multilabel: bool,
        sample_weights: ArrayLike | None = None,
    ) -> Problem:
        """Scale the features, and find their principal directions."""
        values = scale_features(features, None, scaling == "l2")
        mean = values.mean(axis=0)
        values = values - mean
        scale = np.ones(values.shape[1])
        if scaling == "standardized":
            scale = values.std(axis=0)
            scale[scale < 1e-12] = 1.0
            values = values / scale
        labels = np.asarray(target)
        count = labels.shape[1] if multilabel else num_labels or int(labels.max()) + 1
        weights = np.ones(count) if class_weights is None else np.asarray(class_weights, np.float64)
        each = np.ones(len(labels)) if sample_weights is None else np.asarray(sample_weights)
        basis, deviations, is_rotated = _find_directions(values)
        return cls(
            values @ basis if is_rotated else values,
            labels.astype(np.float64 if multilabel else np.int64),
            weights if multilabel else weights[labels] * each,
            each.astype(np.float64),
            count,
            multilabel,
            basis,
            deviations,
            is_rotated,
            mean,
            scale,
            scaling == "l2",
        )

    def solve_path(
        self, cs: Sequence[float], tolerance: float = _TOLERANCE
    ) -> Iterator[AffineHead]:
        """Yield the head for each c; each starts from the one before, so let them ascend.

        Once the training images are all but certain, a larger c would change logits, but no answer: the head stays.

        Args:
            cs: Inverses of the penalty, ascending.
            tolerance: Largest slope of the mean loss that ends a search.
        """
        weight = np.zeros((len(self.deviations), self.num_labels))
        if self.multilabel:
            bias = np.asarray(logit((self.target.sum(axis=0) + 0.5) / (len(self.target) + 1)))
        else:
            counts = np.bincount(self.target, self.weights, minlength=self.num_labels)
            bias = np.log(np.maximum(counts, 1e-3) / counts.sum())
        loss = np.inf
        for c in cs:
            if loss > _CERTAIN:
                weight, bias, loss = self._solve(c, weight, bias, tolerance)
            rotated = (self.basis @ weight).T / self.scale
            yield AffineHead(rotated, bias - rotated @ self.mean, None, self.normalizes)

    def _solve(
        self, c: float, weight: FloatArray, bias: FloatArray, tolerance: float
    ) -> tuple[FloatArray, FloatArray, float]:
        """Return weights [R, C], biases [C], and the mean loss with its penalty."""
        # Two classes: scikit-learn has one vector there, the difference of the two here.
        c = c / 2 if self.num_labels == 2 and not self.multilabel else c
        total = float(self.sample_weights.sum() if self.multilabel else self.weights.sum())
        penalty = 1 / (c * total)
        some = self.rows[:: max(1, len(self.rows) // _MOST_ROWS)]
        logits = some @ (weight if self.is_rotated else self.basis @ weight) + bias
        scores = expit(logits) if self.multilabel else softmax(logits, axis=1)
        # The mean second derivative of the loss by each logit, where the search starts.
        curvature = np.maximum((scores * (1 - scores)).mean(axis=0), 1e-4)
        factors = 1 / np.sqrt(
            np.vstack([curvature * self.deviations[:, None] ** 2 + penalty, curvature])
        )
        project = np.eye(1) if self.is_rotated else self.basis

        def evaluate(flat: FloatArray) -> tuple[float, FloatArray]:
            values = flat.reshape(-1, self.num_labels) * factors
            inner = values[:-1] if self.is_rotated else project @ values[:-1]
            loss, slope, bias_slope = self._evaluate(inner, values[-1])
            slope = slope if self.is_rotated else project.T @ slope
            gradient = np.vstack([slope / total + penalty * values[:-1], bias_slope / total])
            gradient *= factors
            return loss / total + 0.5 * penalty * float((values[:-1] ** 2).sum()), gradient.ravel()

        start = np.vstack([weight, bias]) / factors
        options: dict[str, Any] = {
            "maxiter": _MOST_STEPS,
            "gtol": tolerance,
            "ftol": 1e-2 * tolerance**2,
            "maxcor": 20,
        }
        best = minimize(evaluate, start.ravel(), jac=True, method="L-BFGS-B", options=options)
        solution = best.x.reshape(-1, self.num_labels) * factors
        return solution[:-1], solution[-1], float(best.fun)

    def _evaluate(
        self, weight: FloatArray, bias: FloatArray
    ) -> tuple[float, FloatArray, FloatArray]:
        """Return the summed loss, and its slope by weight and bias."""
        loss, slope, bias_slope = 0.0, np.zeros_like(weight), np.zeros_like(bias)
        for start in range(0, len(self.rows), _CHUNK):
            part = slice(start, start + _CHUNK)
            rows, target = self.rows[part], self.target[part]
            logits = rows @ weight + bias
            if self.multilabel:
                each = (1 + target * (self.weights - 1)) * self.sample_weights[part, None]
                value = float((each * (np.logaddexp(0, logits) - target * logits)).sum())
                residual = each * (expit(logits) - target)
            else:
                value, residual = _compute_softmax_loss(logits, target, self.weights[part])
            loss += value
            slope += rows.T @ residual
            bias_slope += residual.sum(axis=0)
        return loss, slope, bias_slope


def _compute_softmax_loss(
    logits: FloatArray, target: NDArray[Any], weights: FloatArray
) -> tuple[float, FloatArray]:
    """Return the summed loss of logits [n, C], which are overwritten by its slope."""
    every = np.arange(len(target))
    logits -= logits.max(axis=1, keepdims=True)
    right = logits[every, target]
    np.exp(logits, out=logits)
    sums = logits.sum(axis=1)
    loss = float(weights @ (np.log(sums) - right))
    logits /= sums[:, None]
    logits[every, target] -= 1
    logits *= weights[:, None]
    return loss, logits


def _find_directions(values: FloatArray) -> tuple[FloatArray, FloatArray, bool]:
    """Return principal directions [D, R], the deviation along each, and whether to go over to them."""
    number, width = values.shape
    if number < width:
        squares, left = np.linalg.eigh(values @ values.T)
        good = squares > squares.max() * 1e-12
        lengths = np.sqrt(squares[good])
        return values.T @ left[:, good] / lengths, lengths / np.sqrt(number), True
    step = max(1, number // _MOST_ROWS)
    some = values[::step]
    squares, basis = np.linalg.eigh(some.T @ some / len(some))
    return basis, np.sqrt(np.maximum(squares, 0)), number < 4 * width
