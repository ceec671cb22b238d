"""Logistic regressions, one a fold and one on all rows, solved together by L-BFGS."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional as F

from hf_transfer.linear_probe.folds import Folds
from hf_transfer.linear_probe.lbfgs import Vectors, minimise
from hf_transfer.linear_probe.standardise import CONSTANT_TOLERANCE, column_scale

PATIENCE = 2  # penalties in a row that may be worse than the best before the path stops
# A fit may end above its minimum by this fraction of its penalty. A tolerance of a fixed size would
# exceed the complete loss where the penalty is weak, and penalties would then be ranked by where
# the optimizer happened to stop. The path only ranks penalties, so it may stop much earlier than
# the fit whose weights are used.
PATH_TOLERANCE = 1e-4
FINAL_TOLERANCE = 1e-8
MIN_TOLERANCE = 1e-10  # nats; any fraction of a penalty of about 0 is below float32 rounding
# Logits computed at once: they stay in the cache of a processor, and memory does not grow with the
# number of classes.
BLOCK_VALUES = 2**20
# Bias of a class without an example. The largest other logit is never below 0, since
# `subtract_class_mean` keeps their mean at 0: so the class has at most e^-20 of the probability.
ABSENT_LOGIT = -20.0
MIN_CURVATURE = 1e-4  # of an output that is always certain, so that its step stays finite
MIN_EIGENVALUE = 1e-5  # relative to the largest: smaller ones are float32 rounding


@dataclass(frozen=True)
class LogisticProblems:
    """Logistic regressions on one table of features: one without each fold, the last on all rows.

    They are solved together because they share the features: one matrix product of `x` with the
    weights of all problems is far faster than one product a problem, and a problem that has
    converged costs only its columns of that product. What differs between the problems is small:
    the weights of the rows (0 for a held-out row) and the scale of the columns.

    Weights are (problems, outputs, columns), each on the unit scale of its own training rows; a
    bias is the last column.
    """

    labels: torch.Tensor  # (n,) class ids, or (n, outputs) zeros and ones
    x: torch.Tensor  # (n, columns)
    penalised: torch.Tensor  # (columns,): 0 for the bias, 1 for all else
    row_weights: torch.Tensor  # (problems, n); a problem's sum to 1, and are 0 where it is held out
    factors: torch.Tensor  # (problems, 1, columns) to unit scale; 0 for a constant column
    priors: torch.Tensor  # (problems, outputs) weighted frequencies of the labels
    trainable: torch.Tensor  # (problems, outputs, 1): 0 for an output whose labels are all the same
    # Of the second moment of each problem's features; the bias is one more direction. Vectors are 0
    # where the training rows span fewer directions.
    eigenvectors: torch.Tensor  # (problems, columns, rank)
    eigenvalues: torch.Tensor  # (problems, 1, rank)

    def on_all_rows(self) -> "LogisticProblems":
        """The last problem alone."""
        of_each = ("row_weights", "factors", "priors", "trainable", "eigenvectors", "eigenvalues")
        return replace(self, **{name: getattr(self, name)[-1:] for name in of_each})

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Softmax over the outputs, or the sigmoid of each."""
        return logits.softmax(-1) if self.labels.ndim == 1 else logits.sigmoid()

    def losses(self, logits: torch.Tensor) -> torch.Tensor:
        """(n,) log loss of each row; with several labels a row, their sum."""
        if self.labels.ndim == 1:
            return F.cross_entropy(logits, self.labels, reduction="none")
        return F.binary_cross_entropy_with_logits(logits, self.labels, reduction="none").sum(-1)

    def logits(self, weight: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """Blocks of rows, and their logits (rows, problems, outputs)."""
        # The factors go into the weights: scaling the features would copy them for each problem.
        on_x = (weight * self.factors).flatten(0, 1).T
        size = max(1, BLOCK_VALUES // on_x.shape[1])
        for start in range(0, len(self.x), size):
            rows = slice(start, start + size)
            yield rows, (self.x[rows] @ on_x).view(-1, *weight.shape[:2])

    def held_out_logits(self, weight: torch.Tensor, fold_of_row: torch.Tensor) -> torch.Tensor:
        """(n, outputs) logits of each row by the problem without its fold."""
        held_out = []
        for rows, logits in self.logits(weight):
            held_out.append(logits[torch.arange(len(logits)), fold_of_row[rows]])
        return torch.cat(held_out)

    def gradient(self, weight: torch.Tensor, l2: float) -> torch.Tensor:
        """The exact gradient of every problem, shaped as `weight`."""
        total = torch.zeros_like(weight)
        for rows, logits in self.logits(weight):
            labels = self.labels[rows]
            targets = F.one_hot(labels, weight.shape[1]) if labels.ndim == 1 else labels
            errors = self.probabilities(logits).sub_(targets[:, None])
            residuals = errors.mul_(self.row_weights.T[rows, :, None])
            total.view(-1, weight.shape[2]).addmm_(residuals.flatten(1).T, self.x[rows])
        total.mul_(self.factors).add_(l2 * self.penalised * weight)
        return self.subtract_class_mean(total.mul_(self.trainable))

    def subtract_class_mean(self, weight: torch.Tensor) -> torch.Tensor:
        """`weight` minus its mean over the trainable classes, with a softmax; else `weight`.

        A softmax does not change when a constant is added to all logits, so one weight vector of a
        bias could drift without any change of the loss. Gradients and steps without that component
        keep the logits of the trainable classes at the mean 0 that `initial_weight` gives them: the
        largest is at least 0, and ABSENT_LOGIT is never probable.
        """
        if self.labels.ndim == 2:
            return weight
        count = self.trainable.sum(1, keepdim=True).clamp(min=1)
        mean = (weight * self.trainable).sum(1, keepdim=True) / count
        return weight - mean * self.trainable

    def curvature(self, weight: torch.Tensor) -> torch.Tensor:
        """(problems, outputs, 1) mean of p (1 - p), the second derivative by a logit."""
        total = torch.zeros(weight.shape[:2])
        for rows, logits in self.logits(weight):
            p = self.probabilities(logits)
            total += torch.einsum("npk,pn->pk", p * (1 - p), self.row_weights[:, rows])
        return total.clamp(min=MIN_CURVATURE)[..., None]

    def precondition(
        self, gradient: torch.Tensor, curvature: torch.Tensor, l2: float
    ) -> torch.Tensor:
        """The gradient times an approximate inverse Hessian.

        The Hessian of a logistic regression is x' diag(p (1 - p)) x + l2. With the mean curvature
        of each output in place of p (1 - p) of each row it is diagonal in the eigenvectors of x'x,
        which do not change: so its inverse costs two products with them. L-BFGS corrects the rest.
        Without it the condition number of the features, which is large for those of a pretrained
        network, would decide the number of iterations.
        """
        rank = self.eigenvalues.shape[2]
        hessian = curvature * self.eigenvalues + l2 * self.penalised[-rank:]
        # Directions outside the eigenvectors. Not l2 alone: where it is tiny, its inverse would
        # amplify rounding until directions point uphill.
        largest = self.eigenvalues.amax(2, keepdim=True)
        outside = curvature * MIN_EIGENVALUE * largest + l2
        inside = (gradient @ self.eigenvectors) * (1 / hessian - 1 / outside)
        direction = torch.baddbmm(gradient / outside, inside, self.eigenvectors.mT)
        return self.subtract_class_mean(direction)


def build_problems(
    x: np.ndarray, labels: np.ndarray, outputs: int, with_bias: bool, row_weights: np.ndarray
) -> LogisticProblems:
    """The problems with these weights of the rows (problems, n); 0 for a row that is held out."""
    masks = row_weights > 0
    counts = _label_totals(labels, outputs, masks)
    trainable = np.ones_like(counts)
    if with_bias:  # which answers labels that are all the same; without one, the weights must
        trainable = (counts > 0) & (counts < masks.sum(1, keepdims=True))
    scales = np.stack([column_scale(x[mask], centred=with_bias) for mask in masks])
    inverses = 1 / np.maximum(scales, CONSTANT_TOLERANCE)
    factors = np.where(scales > CONSTANT_TOLERANCE, inverses, 0.0).astype(np.float32)
    row_weights = row_weights / row_weights.sum(1, keepdims=True)
    spectra = [_spectrum(x * factors[n], row_weights[n], with_bias) for n in range(len(masks))]
    vectors, values = map(np.stack, zip(*spectra, strict=True))
    penalised = np.append(np.ones(x.shape[1]), np.zeros(int(with_bias)))
    if with_bias:
        column_of_ones = ((0, 0), (0, 1))
        x = np.pad(x, column_of_ones, constant_values=1.0)
        factors = np.pad(factors, column_of_ones, constant_values=1.0)
    priors = _label_totals(labels, outputs, row_weights)
    arrays = (x, penalised, row_weights, factors[:, None], priors, trainable[..., None])
    return LogisticProblems(
        torch.from_numpy(labels.astype(np.int64 if labels.ndim == 1 else np.float32)),
        *map(_as_float32, (*arrays, vectors, values)),
    )


def _as_float32(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32, copy=False))


def solve_logistic(
    problems: LogisticProblems,
    row_weights: np.ndarray,
    folds: Folds | None,
    l2_path: Sequence[float],
    penalty: float,
) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """Weight, bias, L2 penalty and out-of-fold probabilities on standardised features.

    Without folds the first penalty of the path is used, and the priors are the probabilities.
    """
    weight = _initial_weight(problems)
    l2 = l2_path[0]
    probabilities = problems.priors[-1].expand(len(row_weights), -1)
    if folds is not None:
        scored = torch.from_numpy(folds.scored * row_weights)
        fold_of_row = torch.from_numpy(folds.fold_of_row)
        weight, logits, l2 = _follow_path(problems, weight, fold_of_row, scored, l2_path)
        probabilities = problems.probabilities(logits)
    final = problems.on_all_rows()
    weight = _fit(final, weight[-1:], l2 * penalty, FINAL_TOLERANCE)
    solution = (weight * final.factors)[0].double().numpy()
    columns = int(final.penalised.sum())
    bias = solution[:, -1] if columns < solution.shape[1] else np.zeros(len(solution))
    return solution[:, :columns], bias, l2 * penalty, probabilities.numpy()


def _follow_path(
    problems: LogisticProblems,
    weight: torch.Tensor,
    fold_of_row: torch.Tensor,
    scored: torch.Tensor,
    l2_path: Sequence[float],
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Weights, held-out logits and L2 penalty with the least held-out loss, from strong to weak."""
    previous = weight
    min_loss = float("inf")
    worse = 0
    for l2 in l2_path:
        # Warm start by extrapolation: the penalties are evenly spaced on a logarithmic scale, on
        # which the weights change about as much from one to the next as they did before.
        start = 2 * weight - previous
        previous = weight
        weight = _fit(problems, start, l2, PATH_TOLERANCE)
        logits = problems.held_out_logits(weight, fold_of_row)
        loss = float(problems.losses(logits).double() @ scored)
        if loss < min_loss:
            min_loss = loss
            best = (weight, logits, l2)
            worse = 0
        elif (worse := worse + 1) == PATIENCE:
            break
    return best


def _fit(
    problems: LogisticProblems, start: torch.Tensor, l2: float, tolerance: float
) -> torch.Tensor:
    """The weights that minimise every problem, to `tolerance` times its penalty."""
    curvature = problems.curvature(start)

    def gradient(vectors: Vectors) -> Vectors:
        return problems.gradient(vectors.view_as(start), l2).flatten(1)

    def precondition(vectors: Vectors) -> Vectors:
        return problems.precondition(vectors.view_as(start), curvature, l2).flatten(1)

    def excess(vectors: Vectors) -> torch.Tensor:
        penalty = l2 / 2 * (vectors.view_as(start) * problems.penalised).square().sum((1, 2))
        return (tolerance * penalty).clamp(min=MIN_TOLERANCE)[:, None]

    return minimise(gradient, start.flatten(1), precondition, excess).view_as(start)


def _initial_weight(problems: LogisticProblems) -> torch.Tensor:
    """Weights of 0, and biases that predict the priors.

    A label that a problem does not have counts as half an example; a class that no problem has gets
    ABSENT_LOGIT.
    """
    weight = torch.zeros(*problems.trainable.shape[:2], problems.x.shape[1])
    if problems.penalised.all():
        return weight
    half = 0.5 / len(problems.x)
    priors = problems.priors
    if problems.labels.ndim == 1:
        occurs = priors[-1] > 0
        logits = priors.clamp(min=half).log()
        logits -= logits[:, occurs].mean(1, keepdim=True)
        logits[:, ~occurs] = ABSENT_LOGIT
    else:
        logits = ((priors + half) / (1 - priors + half)).log()
    weight[..., -1] = logits
    return weight


def _label_totals(labels: np.ndarray, outputs: int, row_weights: np.ndarray) -> np.ndarray:
    """(problems, outputs) sum of the weights (problems, n) of the rows that have each label."""
    if labels.ndim == 2:
        return row_weights.astype(np.float64) @ labels
    return np.stack([np.bincount(labels, weights, outputs) for weights in row_weights])


def _spectrum(
    x: np.ndarray, row_weights: np.ndarray, with_bias: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvectors and eigenvalues of the weighted second moment x'x.

    With more columns than rows from those of xx', which is smaller and has the same eigenvalues.
    """
    rows = torch.from_numpy(x * np.sqrt(row_weights, dtype=np.float32)[:, None])
    wide = rows.shape[1] > len(rows)
    values, vectors = torch.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)
    least = MIN_EIGENVALUE * max(float(values[-1]), CONSTANT_TOLERANCE)
    if wide:
        scaled = rows.T @ vectors / values.clamp(min=least).sqrt()
        vectors = torch.where(values > least, scaled, 0.0)
    values = values.clamp(min=least)[None]
    if with_bias:
        vectors = torch.block_diag(vectors, torch.ones(1, 1))
        values = F.pad(values, (0, 1), value=1.0)
    return vectors.numpy(), values.numpy()
