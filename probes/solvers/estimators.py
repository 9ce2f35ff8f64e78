"""The probes as scikit-learn estimators: standardised, solved in the basis, weights taken back to the features. Knows
arrays; not runs, folds or files.

Legend: n training rows, m other rows, D features, K classes, C columns of coefficients, T targets.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from htc_probe.probes.solvers import ridge
from htc_probe.probes.solvers.basis import Basis
from htc_probe.probes.solvers.newton import Path
from htc_probe.probes.solvers.problems import Target
from htc_probe.probes.solvers.products import half_copy

_FLOATS = [np.float64, np.float32, np.float16]


class _Probe(ClassifierMixin, BaseEstimator):
    """What both estimators do: standardise, solve in the basis, and take the weights back to the features."""

    def __init__(self, strength: float = 0.01, *, tolerance: float = 2e-7, device: str = "cpu") -> None:
        self.strength = strength
        self.tolerance = tolerance
        self.device = device

    def _solve(self, X: np.ndarray, target: Target) -> None:
        """Sets coef_ (C, D), intercept_ (C,), objective_ and gap_, see Fit."""
        if not self.strength > 0:
            raise ValueError(f"strength={self.strength}; expected a number above 0")
        dtype = torch.float64 if X.dtype == np.float64 else torch.float32
        basis = Basis.fit(X, device=self.device, dtype=dtype)
        half = half_copy(basis.train, max(target.classes, target.y[0].size))
        path = Path(basis.train, basis.eigenvalues, [target], tolerance=self.tolerance, half=half)
        fit = path.advance(self.strength)
        self.coef_ = (basis.rotation @ fit.weights).T.double().cpu().numpy() * basis.scaler.factor
        self.intercept_ = fit.intercepts.double().cpu().numpy() - self.coef_ @ basis.scaler.mean
        self.objective_, self.gap_ = float(fit.objective[0]), float(fit.gap[0])

    def _logits(self, X: np.ndarray) -> np.ndarray:
        """(m, C) float64."""
        check_is_fitted(self)
        return validate_data(self, X, dtype=_FLOATS, reset=False).astype(np.float64) @ self.coef_.T + self.intercept_


class LogisticProbe(_Probe):
    """Logistic regression on standardised features, multinomial for more than two classes.

    It minimises `mean cross-entropy + strength / 2 * ||W||^2`: LogisticRegression(C=1 / (strength * n)) behind a
    StandardScaler. After `fit`: classes_, coef_ and intercept_ for the features as they come, objective_, and gap_, a
    bound on the share by which objective_ exceeds its minimum. One class is predicted without a fit.
    """

    def fit(self, X: np.ndarray, y: np.ndarray) -> LogisticProbe:
        """X (n, D) finite, y (n,) classes of any kind. Raises ValueError as scikit-learn does."""
        X, y = validate_data(self, X, y, dtype=_FLOATS)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        self._solve(X, Target(codes, len(self.classes_)))
        return self

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        """(m, K) logits; (m,) that of the second of two classes."""
        z = self._logits(X)
        return z[:, 0] if len(self.classes_) == 2 else z

    def predict_log_proba(self, X: np.ndarray) -> np.ndarray:
        """(m, K), nats."""
        z = self._logits(X)
        if len(self.classes_) == 2:
            return -np.logaddexp(0, np.concatenate([z, -z], 1))
        z -= z.max(1, keepdims=True)
        return z - np.log(np.exp(z).sum(1, keepdims=True))

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """(m, K)"""
        return np.exp(self.predict_log_proba(X))

    def predict(self, X: np.ndarray) -> np.ndarray:
        """(m,) the likeliest classes."""
        likeliest = self.predict_log_proba(X).argmax(1)
        return self.classes_[likeliest]


class MultilabelProbe(_Probe):
    """One logistic regression a label, all at once, with unknown labels left out; otherwise as LogisticProbe.

    As scikit-learn's own, it takes two classes of any kind (y of one dimension) as the one-label case.
    """

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        tags.classifier_tags.multi_class = False
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: np.ndarray, y: np.ndarray) -> MultilabelProbe:
        """X (n, D) finite, y (n, labels) of 0, 1 and 255 where unknown. Raises ValueError as scikit-learn does."""
        X, y = validate_data(self, X, y, dtype=_FLOATS, multi_output=True)
        self._single = y.ndim == 1
        if self._single:
            check_classification_targets(y)
            self.classes_, y = np.unique(y, return_inverse=True)
            if len(self.classes_) > 2:
                raise ValueError(
                    "Only binary classification is supported. The type of the target is multiclass; "
                    f"use LogisticProbe for {len(self.classes_)} classes"
                )
            y = y[:, None]
        else:
            self.classes_ = np.array([0, 1], dtype=y.dtype)
        self._solve(X, Target(y, 0))
        return self

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        """(m, labels) logits, infinite for a label with one known value; (m,) where y had one dimension."""
        z = self._logits(X)
        return z[:, 0] if self._single else z

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """(m, labels), of the label being 1; (m, 2) where y had one dimension."""
        z = self._logits(X)
        if self._single:
            z = np.concatenate([-z, z], 1)[:, : len(self.classes_)]
        return np.exp(-np.logaddexp(0, -z))

    def predict(self, X: np.ndarray) -> np.ndarray:
        """(m, labels) of 0 and 1, or (m,) classes."""
        positive = (self.decision_function(X) > 0).astype(int)
        return self.classes_[positive]


class RidgeProbe(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Ridge on standardised features, its strength chosen by leave-one-out; a scikit-learn regressor.

    With one strength it is `make_pipeline(StandardScaler(), Ridge(alpha=strength * n))`. Unknown values are not taken
    here; see `fit`.

    Attributes of the fit: `coef_` (D,) or (T, D) and `intercept_` for features as given; `strength_`, of every target
    where y has two dimensions; `n_features_in_`.
    """

    def __init__(self, strengths: Sequence[float] = ridge.STRENGTHS, device: str = "cpu") -> None:
        """`strengths`: strong to weak; of the mean loss, so that they mean the same on any number of rows."""
        self.strengths = strengths
        self.device = device

    def fit(self, X: np.ndarray, y: np.ndarray) -> RidgeProbe:
        """X (n, D), y (n,) or (n, T)."""
        X, y = validate_data(self, X, y, multi_output=True, y_numeric=True, ensure_min_samples=2, dtype=np.float64)
        y_nT = np.asarray(y, dtype=np.float64).reshape(len(y), -1)
        basis = Basis.fit(X, device=self.device, dtype=torch.float64)
        strength_T = np.full(y_nT.shape[1], self.strengths[0])
        if len(self.strengths) > 1:
            held_out = ridge.leave_out(basis, y_nT, self.strengths, np.arange(len(X)))
            strength_T = ridge.choose(ridge.residual_variance(held_out, y_nT), self.strengths).strengths
        probe = ridge.fit(basis, y_nT, strength_T)
        coef_DT, intercept_T = basis.on_features(*probe)
        single = y.ndim == 1
        self.coef_ = coef_DT[:, 0] if single else coef_DT.T
        self.intercept_ = intercept_T[0] if single else intercept_T
        self.strength_ = strength_T[0] if single else strength_T
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """(m,) or (m, T)."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        return X @ self.coef_.T + self.intercept_
