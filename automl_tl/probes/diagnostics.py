"""Transferability scores from the literature: logged beside the probes, never what decides (see `ranking`).

Higher is better for all of them. Their values compare taps of one task; they are no F1 and differ by dimension.
Notation: N samples, d features, K classes.
"""

from __future__ import annotations

import warnings

import numpy as np
from scipy.optimize import minimize_scalar

from automl_tl.probes.centering import Features
from automl_tl.probes.decomposition import Decomposition, decompose

NO_EXTENT = 1e-9  # share of the largest squared singular value below which one is rounding
RATIOS = np.logspace(-8, 8, 65)  # of the prior's precision to the noise's, for features of mean squared norm 1
GBC_AXES = 64
NLEEP_VARIANCE = 0.8  # share that the principal axes of NLEEP hold
NLEEP_COMPONENTS = 5  # Gaussians a class
LEAST_VARIANCE = 1e-3  # of a class along an axis, as a share of the mean variance; classes may have one sample


def logme(features: Features, labels: np.ndarray, n_classes: int) -> float:
    """Log marginal evidence of Bayesian linear regression, mean over classes, a sample (You et al., ICML 2021).

    Each class is regressed against the rest: y ~ N(0, (I + F F^T / t) / b) for centered features F and labels y. The
    best noise precision b is known for every ratio t of the prior's precision to it, so one number is searched. Of the
    determinant of a d x d matrix, the reference code leaves out (d - k) log a, of its d - k axes without extent; in
    this form they cancel. Centering takes one degree of freedom. The features' scale has no influence.

    Args:
        features: (N, d) floats.
        labels: (N,) int64 classes, or (N, K) 0/1.
        n_classes: K.
    """
    targets = _indicators(labels, n_classes)
    varying = targets[:, (targets.min(0) < 1) & (targets.max(0) > 0)]
    if not varying.size:
        return 0.0
    axes = decompose(features)
    varying = varying - varying.mean(0)
    along = np.square(_left_projection(axes, varying))  # (r, K) squared parts of the labels along the axes
    beyond = (np.square(varying).sum(0) - along.sum(0)).clip(min=0)
    freedom = len(varying) - 1

    def evidence(ratio: np.ndarray) -> np.ndarray:
        damped = 1 / (1 + axes.values[:, None] / ratio)  # (r, T)
        misfit = along.T @ damped + beyond[:, None]  # (K, T)
        fit = -freedom * (1 + np.log(2 * np.pi * misfit.clip(min=np.finfo(float).tiny) / freedom))
        return np.asarray((fit + np.log(damped).sum(0)) / 2)

    grid = evidence(RATIOS)
    best = grid.max(1)
    log_ratios, step = np.log(RATIOS), np.log(RATIOS[1] / RATIOS[0])
    for index, column in enumerate(grid.argmax(1)):
        near = (log_ratios[column] - step, log_ratios[column] + step)
        found = minimize_scalar(
            lambda log_ratio, index=index: -evidence(np.exp([log_ratio]))[index, 0], bounds=near, method="bounded"
        )
        best[index] = max(best[index], -found.fun)
    return float(best.mean() / len(varying))


def h_score(features: Features, labels: np.ndarray, n_classes: int) -> float:
    """Variance between classes over all variance, the latter shrunk (Bao et al. 2019; Ibrahim et al., ECML PKDD 2022).

    (1 - s) tr(C_s^-1 B), with B the covariance of the class means, C_s = (1 - s) C + s tr(C) / d I and the intensity s
    of Ledoit and Wolf (2004).

    Args:
        features: (N, d) floats.
        labels: (N,) int64 classes.
        n_classes: K.
    """
    axes = decompose(features)
    n, d = axes.centered.shape
    variances = axes.values / n
    mean_variance = variances.sum() / d
    spread = np.square(variances).sum()  # squared Frobenius norm of the covariance
    distance = spread / d - mean_variance**2
    noise = (np.square(axes.centered.squared_norms()).mean() - spread) / (n * d)
    shrinkage = float(min(noise, distance) / distance) if distance > 0 else 0.0
    targets = _indicators(labels, n_classes)
    sizes = targets.sum(0).clip(min=1)
    means = np.sqrt(axes.values)[:, None] * _left_projection(axes, targets) / sizes  # (r, K)
    between = (np.square(means) * sizes).sum(1) / n
    within = (1 - shrinkage) * variances + shrinkage * mean_variance
    extends = variances > NO_EXTENT * variances.max()
    return float((1 - shrinkage) * (between[extends] / within[extends]).sum())


def gbc(features: Features, labels: np.ndarray, n_classes: int) -> float:
    """Minus the overlap of all pairs of classes (Gaussian Bhattacharyya coefficient, Pandy et al., CVPR 2022).

    Classes are Gaussians with a variance for each of the 64 widest principal axes.

    Args:
        features: (N, d) floats.
        labels: (N,) int64 classes.
        n_classes: K.
    """
    points = _principal(decompose(features), GBC_AXES)
    present = [points[labels == index] for index in range(n_classes) if (labels == index).any()]
    means = np.stack([rows.mean(0) for rows in present])
    floor = LEAST_VARIANCE * points.var(0).mean()
    variances = np.stack([rows.var(0) for rows in present]) + max(floor, np.finfo(float).tiny)
    overlap = 0.0
    for index, (mean, variance) in enumerate(zip(means, variances, strict=True)):
        middle = (variance + variances) / 2
        apart = np.square(mean - means) / middle / 8
        unlike = (np.log(middle) - (np.log(variance) + np.log(variances)) / 2) / 2
        coefficients = np.exp(-(apart + unlike).sum(1))
        overlap += float(coefficients.sum() - coefficients[index])
    return -overlap


def leep(source_probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Log expected empirical prediction (Nguyen et al., ICML 2020): mean log of sum_z p(y | z) p(z | x).

    Args:
        source_probabilities: (N, Z) of the source task's classes z.
        labels: (N,) int64 classes y of the target task.
    """
    joint = np.eye(int(labels.max()) + 1)[labels].T @ source_probabilities  # (K, Z)
    total = joint.sum(0)
    conditional = np.divide(joint, total, out=np.zeros_like(joint), where=total > 0)
    expected = (source_probabilities * conditional[labels]).sum(1)
    return float(np.log(expected.clip(min=np.finfo(float).tiny)).mean())


def nleep(features: Features, labels: np.ndarray, *, seed: int = 0) -> float:
    """LEEP with a mixture of Gaussians in place of source classes (Li et al., CVPR 2021).

    The mixture has five Gaussians a class, fewer where there are fewer than two samples for each, on the principal axes
    that hold 80 % of the variance.

    Args:
        features: (N, d) floats.
        labels: (N,) int64 classes.
        seed: of the mixture's start.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    axes = decompose(features)
    held = np.cumsum(axes.values[::-1]) / max(axes.values.sum(), np.finfo(float).tiny)
    points = _principal(axes, int(np.searchsorted(held, NLEEP_VARIANCE)) + 1)
    points /= points.std() or 1.0
    n_components = min(NLEEP_COMPONENTS * len(np.unique(labels)), max(1, len(labels) // 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # its responsibilities serve, however settled
        mixture = GaussianMixture(n_components, reg_covar=LEAST_VARIANCE, random_state=seed).fit(points)
    return leep(mixture.predict_proba(points), labels)


def _indicators(labels: np.ndarray, n_classes: int) -> np.ndarray:
    return labels.astype(np.float64) if labels.ndim == 2 else np.eye(n_classes)[labels]


def _left_projection(axes: Decomposition, matrix: np.ndarray) -> np.ndarray:
    """U^T times a matrix (N, K): (r, K), 0 along axes that no sample extends to."""
    if axes.left is not None:
        return np.asarray(axes.left.T @ matrix)
    extends = axes.values > NO_EXTENT * axes.values.max(initial=0)
    root = np.sqrt(np.where(extends, axes.values, 1))[:, None]
    return np.where(extends[:, None], axes.project(matrix) / root, 0)


def _principal(axes: Decomposition, n_axes: int) -> np.ndarray:
    """Coordinates along the widest axes: (N, n_axes) float64, fewer where there are fewer."""
    return np.concatenate([axes.coordinates(part, n_axes) for part in axes.centered.parts()]).astype(np.float64)
