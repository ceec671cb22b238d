"""A linear head is solved, not stepped: regularised, cross-validated, deterministic, in a second.

The penalised problem is convex and its features do not change, so there is an answer to compute and no schedule to
tune. All folds and the fit on every row descend together: one matrix product serves them all, and the spectrum of its
own features preconditions each.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from hf_transfer.config.data import ProblemType
from hf_transfer.data.splits import assign_folds, strata_of_numbers, strata_of_sets
from hf_transfer.linear_probe.lbfgs import Vectors, minimise

FOLDS = 5
# Penalties of the mean loss, strong to weak, on features of unit scale. The path stops by itself before weak ends.
STRENGTHS = tuple(float(strength) for strength in 10.0 ** np.arange(1.0, -6.1, -0.5))
FIXED_STRENGTH = (
    0.1  # where nothing can be held out: what cross-validation settles on with two or three a class
)
PATIENCE = 2  # strengths in a row that may be worse than the best before the path stops
# A descent may end above its minimum by this share of the penalty. An error of a fixed size would be larger than the
# whole loss where the strength is weak, and strengths would differ by where the descent happened to stop.
PATH_TOLERANCE, FINAL_TOLERANCE = 1e-4, 1e-8
LEAST_TOLERANCE = 1e-10  # nats: of a penalty of about 0 any share is below the rounding of 32 bits
BLOCK_VALUES = (
    2**20
)  # logits held at once: they stay in a processor's cache, and memory does not grow with classes
ABSENT_LOGIT = (
    -20.0
)  # of a class without an example; the largest other logit is never below 0, see _Problems.level
LEAST_CURVATURE = 1e-4  # of an output that is always sure, so that its step stays finite
LEAST_EIGENVALUE = 1e-5  # as a share of the largest: smaller ones are rounding of 32 bits
SAME = 1e-6  # a column that deviates by less than this share of its size is constant, up to the rounding of 32 bits

Folds = tuple[np.ndarray, np.ndarray]  # two of (n,): the fold of each row, and which rows vote


@dataclass(frozen=True)
class SolvedHead:
    """A linear head and how it was found: logits = features @ weight.T + bias, on features as they were given."""

    weight: np.ndarray  # (outputs, features) float32, to be copied into nn.Linear
    bias: np.ndarray | None  # (outputs,) float32; None if asked for without one
    strength: float  # of the L2 penalty: strength / 2 * |weight|^2 next to the mean loss, on features of unit scale
    out_of_fold: (
        np.ndarray
    )  # (n, outputs) float32: probabilities (numbers) by heads that did not see the row
    cross_validated: bool  # whether the strength was chosen so


def solve_head(
    features: np.ndarray,
    labels: np.ndarray,
    problem_type: ProblemType,
    outputs: int,
    with_bias: bool = True,
    class_weights: np.ndarray | None = None,
    seed: int = 0,
    views: int = 1,
    penalty: float = 1.0,
) -> SolvedHead:
    """The linear head that minimises the mean loss plus the L2 penalty that cross-validation chooses.

    `features` (views * n, features): view after view of the same n rows in the same order; `labels` (n,) class
    numbers, (n, outputs) zeros and ones, or numbers to regress on. Single label: multinomial logistic regression, rows
    weighted by `class_weights` (outputs,). Multi-label: a logistic regression an output, one strength for all.
    Regression: ridge, half the squared error. The penalty acts on features that are centred and of unit deviation among
    the rows that a head learns from (without bias: of unit mean square, not centred).

    The strength is `penalty` times that of the least held-out loss over five stratified folds, fewer where no class has
    five members; rows of classes with one member do not vote. All views of a row are in one fold. `out_of_fold` comes
    from the folds at that strength, the mean over the views of a row. Where fewer than half of the rows could vote (one
    label a class), the strength is FIXED_STRENGTH and `out_of_fold` repeats the shares of the labels (their mean).

    With a bias, a class without an example gets one that makes it never probable (of several labels a row, one that
    gives it half an example); without, it only learns to be improbable. The same input gives the same bits. Raises
    ValueError for what does not fit together.
    """
    features, labels = np.asarray(features, dtype=np.float32), np.asarray(labels)
    _check(features, labels, problem_type, outputs, class_weights, views)
    folds = _folds(_strata(labels, problem_type), seed, views)
    labels = np.concatenate([labels] * views)
    x, centre, factor = _standardise(features, with_bias)
    if problem_type == "regression":
        numbers = labels.astype(np.float64).reshape(len(x), outputs)
        weight, bias, strength, held_out = _solve_ridge(x, numbers, with_bias, folds, penalty)
    else:
        row_weights = (
            np.ones(len(x))
            if class_weights is None
            else np.asarray(class_weights, dtype=np.float64)[labels]
        )
        problems = _pose(x, labels, outputs, with_bias, _looks(len(x), folds) * row_weights)
        weight, bias, strength, held_out = _solve_logistic(problems, row_weights, folds, penalty)
    raw = weight * factor
    folded = (bias - raw @ centre).astype(np.float32) if with_bias else None
    out_of_fold = held_out.reshape(views, -1, outputs).mean(0).astype(np.float32)
    return SolvedHead(raw.astype(np.float32), folded, strength, out_of_fold, folds is not None)


def _check(
    features: np.ndarray,
    labels: np.ndarray,
    problem_type: ProblemType,
    outputs: int,
    class_weights: np.ndarray | None,
    views: int,
) -> None:
    single = problem_type == "single_label_classification"
    if features.ndim != 2 or features.size == 0 or len(features) != views * len(labels):
        raise ValueError(
            f"features {features.shape}, labels {labels.shape}: want ({views} * n, features) and n labels"
        )
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"features of {(~finite).sum()} rows are not finite, the first is row {finite.argmin()}"
        )
    if single and (labels.ndim != 1 or labels.dtype.kind not in "iu"):
        raise ValueError(f"labels {labels.shape} of {labels.dtype}: want (n,) integers")
    if single and not 0 <= labels.min() <= labels.max() < outputs:
        raise ValueError(
            f"labels from {labels.min()} to {labels.max()}: {outputs} outputs want 0 to {outputs - 1}"
        )
    if not single and (labels.size != len(labels) * outputs or not np.isfinite(labels).all()):
        raise ValueError(
            f"labels {labels.shape}: {outputs} outputs want as many finite numbers a row"
        )
    if problem_type == "multi_label_classification" and (
        labels.ndim != 2 or not np.isin(labels, (0, 1)).all()
    ):
        raise ValueError(f"labels {labels.shape}: want (n, {outputs}) zeros and ones")
    if class_weights is not None and not (
        single and len(class_weights) == outputs and np.min(class_weights) > 0
    ):
        raise ValueError(
            f"{len(class_weights)} class weights: want {outputs} above 0, and a single label a row"
        )


def _standardise(
    features: np.ndarray, with_bias: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features on a unit scale (float32), the centre that was taken off, the factor that was multiplied with.

    The factor of a constant column is 0, so that it has no say and its weight folds back to 0.
    """
    centre = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    centre = centre if with_bias else np.zeros_like(centre)
    x = features - centre
    deviation = _scale(x, centred=False)
    constant = deviation <= SAME * np.abs(centre) + np.finfo(np.float32).tiny
    factor = np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, deviation)).astype(np.float32)
    x *= factor
    return x, centre.astype(np.float64), factor.astype(np.float64)


def _scale(x: np.ndarray, centred: bool) -> np.ndarray:
    """(columns,) root mean square of each column of `x`, about its mean if `centred`."""
    square = np.einsum("ij,ij->j", x, x, dtype=np.float64) / len(x)
    return (
        np.sqrt(np.maximum(square - x.mean(axis=0, dtype=np.float64) ** 2, 0.0))
        if centred
        else np.sqrt(square)
    )


def _strata(labels: np.ndarray, problem_type: ProblemType) -> np.ndarray:
    """(n,) which rows every fold should have its share of."""
    if problem_type == "single_label_classification":
        return labels
    if problem_type == "multi_label_classification":
        return np.array(strata_of_sets(labels.tolist()))
    # Tenths of one row each would leave no folds; numbers, unlike classes, can be held out all the same.
    tenths = strata_of_numbers(labels.reshape(len(labels), -1)[:, 0].tolist())
    return np.array(tenths) if len(labels) >= 20 else np.zeros(len(labels))


def _folds(strata: np.ndarray, seed: int, views: int) -> Folds | None:
    """Folds that share out every stratum evenly, where rows alone in theirs do not vote; None if too few do."""
    _, which, counts = np.unique(strata, return_inverse=True, return_counts=True)
    votes = counts[which] > 1
    if 2 * votes.sum() < len(strata):
        return None
    fold = assign_folds(which, min(FOLDS, int(counts.max())), seed)
    return np.tile(fold, views), np.tile(votes, views)


# --- classification ---


@dataclass(frozen=True)
class _Problems:
    """Logistic regressions on one table of features, solved together: one without each fold, the last on every row.

    Weights are (problems, outputs, columns), each problem's on its own unit scale; a bias is the last column.
    """

    labels: torch.Tensor  # (n,) class numbers, or (n, outputs) zeros and ones
    x: torch.Tensor  # (n, columns)
    penalised: torch.Tensor  # (columns,): 0 for the bias, 1 for all else
    row_weights: (
        torch.Tensor
    )  # (problems, n); of each problem they sum to 1, and are 0 where it does not look
    factors: (
        torch.Tensor
    )  # (problems, 1, columns): to its unit scale; 0 for a column that is constant in the problem
    shares: torch.Tensor  # (problems, outputs) of the labels, weighted
    learns: (
        torch.Tensor
    )  # (problems, outputs, 1): 0 for an output whose labels in the problem are all the same
    # Of the second moment of each problem's features, and the bias as one more direction.
    eigenvectors: (
        torch.Tensor
    )  # (problems, columns, rank); 0 where the problem's rows have fewer directions
    eigenvalues: torch.Tensor  # (problems, 1, rank)

    def last(self) -> "_Problems":
        """The problem of all rows alone."""
        each = (
            self.row_weights,
            self.factors,
            self.shares,
            self.learns,
            self.eigenvectors,
            self.eigenvalues,
        )
        return _Problems(self.labels, self.x, self.penalised, *(part[-1:] for part in each))

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Softmax over the outputs, or the sigmoid of each."""
        return logits.softmax(-1) if self.labels.ndim == 1 else logits.sigmoid()

    def losses(self, logits: torch.Tensor) -> torch.Tensor:
        """(n,) log loss of each row, summed over its labels if they are several."""
        if self.labels.ndim == 1:
            return F.cross_entropy(logits, self.labels, reduction="none")
        return F.binary_cross_entropy_with_logits(logits, self.labels, reduction="none").sum(-1)

    def logits(self, weight: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """Blocks of rows, and their logits (rows, problems, outputs)."""
        on_x = (weight * self.factors).flatten(0, 1).T
        size = max(1, BLOCK_VALUES // on_x.shape[1])
        for start in range(0, len(self.x), size):
            rows = slice(start, start + size)
            yield rows, (self.x[rows] @ on_x).view(-1, *weight.shape[:2])

    def gradient(self, weight: torch.Tensor, strength: float) -> torch.Tensor:
        """The exact gradient of every problem, shaped as `weight`."""
        total = torch.zeros_like(weight)
        for rows, logits in self.logits(weight):
            labels = self.labels[rows]
            targets = F.one_hot(labels, weight.shape[1]) if labels.ndim == 1 else labels
            residuals = (
                self.probabilities(logits)
                .sub_(targets[:, None])
                .mul_(self.row_weights.T[rows, :, None])
            )
            total.view(-1, weight.shape[2]).addmm_(residuals.flatten(1).T, self.x[rows])
        total.mul_(self.factors).add_(strength * self.penalised * weight)
        return self.level(total.mul_(self.learns))

    def level(self, weight: torch.Tensor) -> torch.Tensor:
        """`weight` less its mean over the classes that learn: a softmax does not see what all classes share.

        So the logits keep the mean 0 that they start with: the largest is at least 0, and ABSENT_LOGIT never probable.
        """
        if self.labels.ndim == 2:
            return weight
        mean = (weight * self.learns).sum(1, keepdim=True) / self.learns.sum(1, keepdim=True).clamp(
            min=1
        )
        return weight - mean * self.learns

    def curvature(self, weight: torch.Tensor) -> torch.Tensor:
        """(problems, outputs, 1) mean of p (1 - p), the second derivative of the loss by a logit."""
        total = torch.zeros(weight.shape[:2])
        for rows, logits in self.logits(weight):
            p = self.probabilities(logits)
            total += torch.einsum("npk,pn->pk", p * (1 - p), self.row_weights[:, rows])
        return total.clamp(min=LEAST_CURVATURE)[..., None]

    def precondition(
        self, gradient: torch.Tensor, curvature: torch.Tensor, strength: float
    ) -> torch.Tensor:
        """The gradient times the inverse of the Hessian, as if the latter were curvature x second moment."""
        hessian = (
            curvature * self.eigenvalues + strength * self.penalised[-self.eigenvalues.shape[2] :]
        )
        # Not the strength alone: where that is tiny, its inverse would blow up rounding until directions point uphill.
        least = curvature * LEAST_EIGENVALUE * self.eigenvalues.amax(2, keepdim=True) + strength
        inside = (gradient @ self.eigenvectors) * (1 / hessian - 1 / least)
        return self.level(torch.baddbmm(gradient / least, inside, self.eigenvectors.mT))

    def held_out(self, weight: torch.Tensor, fold: torch.Tensor) -> torch.Tensor:
        """(n, outputs) logits of each row by the problem that does not look at it."""
        return torch.cat(
            [logits[torch.arange(len(logits)), fold[rows]] for rows, logits in self.logits(weight)]
        )


def _looks(n: int, folds: Folds | None) -> np.ndarray:
    """(problems, n) which rows each problem looks at: all but a fold, the last at all."""
    every = np.ones((1, n), dtype=bool)
    return (
        every
        if folds is None
        else np.concatenate([folds[0] != np.arange(folds[0].max() + 1)[:, None], every])
    )


def _solve_logistic(
    problems: _Problems, row_weights: np.ndarray, folds: Folds | None, penalty: float
) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """Weight, bias, strength and out-of-fold probabilities on standardised features."""
    weight, strength = _start(problems), FIXED_STRENGTH
    probabilities = problems.shares[-1].expand(len(row_weights), -1)
    if folds is not None:
        votes = torch.from_numpy(folds[1] * row_weights)
        weight, logits, strength = _follow_path(problems, weight, torch.from_numpy(folds[0]), votes)
        probabilities = problems.probabilities(logits)
    final = problems.last()
    weight = _descend(final, weight[-1:], strength * penalty, FINAL_TOLERANCE)
    solved, columns = (weight * final.factors)[0].double().numpy(), int(final.penalised.sum())
    bias = solved[:, -1] if columns < solved.shape[1] else np.zeros(len(solved))
    return solved[:, :columns], bias, strength * penalty, probabilities.numpy()


def _pose(
    x: np.ndarray, labels: np.ndarray, outputs: int, with_bias: bool, weights: np.ndarray
) -> _Problems:
    """The problems that give the rows these weights (problems, n)."""
    looks = weights > 0
    counts = _totals(labels, outputs, looks)
    learns = (
        (counts > 0) & (counts < looks.sum(1, keepdims=True)) if with_bias else np.ones_like(counts)
    )
    scales = np.stack([_scale(x[look], centred=with_bias) for look in looks])
    factors = np.where(scales > SAME, 1 / np.maximum(scales, SAME), 0.0).astype(np.float32)
    weights = weights / weights.sum(1, keepdims=True)
    spectra = [
        _spectrum(x * own, rows, with_bias) for own, rows in zip(factors, weights, strict=True)
    ]
    vectors, values = (np.stack(part) for part in zip(*spectra, strict=True))
    penalised = np.append(np.ones(x.shape[1]), np.zeros(int(with_bias)))
    if with_bias:
        x, factors = (np.pad(part, ((0, 0), (0, 1)), constant_values=1.0) for part in (x, factors))
    shares = _totals(labels, outputs, weights)
    numbers = (x, penalised, weights, factors[:, None], shares, learns[..., None], vectors, values)
    return _Problems(
        torch.from_numpy(labels.astype(np.int64 if labels.ndim == 1 else np.float32)),
        *(torch.from_numpy(each.astype(np.float32, copy=False)) for each in numbers),
    )


def _totals(labels: np.ndarray, outputs: int, weights: np.ndarray) -> np.ndarray:
    """(problems, outputs) the weights (problems, n) of the rows that have a label, summed."""
    if labels.ndim == 2:
        return weights.astype(np.float64) @ labels
    return np.stack([np.bincount(labels, each, outputs) for each in weights])


def _spectrum(
    x: np.ndarray, row_weights: np.ndarray, with_bias: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvectors and eigenvalues of the weighted second moment, by way of the smaller of x'x and xx'."""
    rows = torch.from_numpy(x * np.sqrt(row_weights, dtype=np.float32)[:, None])
    wide = rows.shape[1] > len(rows)
    values, vectors = torch.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)
    least = LEAST_EIGENVALUE * max(float(values[-1]), SAME)
    if wide:
        vectors = torch.where(
            values > least, rows.T @ vectors / values.clamp(min=least).sqrt(), 0.0
        )
    values = values.clamp(min=least)[None]
    if with_bias:
        vectors, values = (
            torch.block_diag(vectors, torch.ones(1, 1)),
            F.pad(values, (0, 1), value=1.0),
        )
    return vectors.numpy(), values.numpy()


def _start(problems: _Problems) -> torch.Tensor:
    """Weights 0, biases the logs of the labels' shares; half an example for what a problem has none of."""
    weight = torch.zeros(*problems.learns.shape[:2], problems.x.shape[1])
    if problems.penalised.all():
        return weight
    half, shares = 0.5 / len(problems.x), problems.shares
    if problems.labels.ndim == 1:
        occurs = shares[-1] > 0
        logits = shares.clamp(min=half).log()
        logits -= logits[:, occurs].mean(1, keepdim=True)
        logits[:, ~occurs] = ABSENT_LOGIT
    else:
        logits = ((shares + half) / (1 - shares + half)).log()
    weight[..., -1] = logits
    return weight


def _follow_path(
    problems: _Problems, weight: torch.Tensor, fold: torch.Tensor, votes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Weights, held-out logits and strength where the held-out loss is least, from strong to weak."""
    before, least, worse = weight, float("inf"), 0
    for strength in STRENGTHS:
        # Strengths are even steps apart on a scale of logarithms, on which the weights go on about as they went.
        before, weight = weight, _descend(problems, 2 * weight - before, strength, PATH_TOLERANCE)
        logits = problems.held_out(weight, fold)
        loss = float(problems.losses(logits).double() @ votes)
        if loss < least:
            least, best, worse = loss, (weight, logits, strength), 0
        elif (worse := worse + 1) == PATIENCE:
            break
    return best


def _descend(
    problems: _Problems, start: torch.Tensor, strength: float, tolerance: float
) -> torch.Tensor:
    """The weights that minimise every problem, to `tolerance` times their penalty."""
    curvature = problems.curvature(start)

    def gradient(vectors: Vectors) -> Vectors:
        return problems.gradient(vectors.view_as(start), strength).flatten(1)

    def precondition(vectors: Vectors) -> Vectors:
        return problems.precondition(vectors.view_as(start), curvature, strength).flatten(1)

    def enough(vectors: Vectors) -> torch.Tensor:
        penalty = strength / 2 * (vectors.view_as(start) * problems.penalised).square().sum((1, 2))
        return (tolerance * penalty).clamp(min=LEAST_TOLERANCE)[:, None]

    return minimise(gradient, start.flatten(1), precondition, enough).view_as(start)


# --- regression ---


def _solve_ridge(
    x: np.ndarray, numbers: np.ndarray, with_bias: bool, folds: Folds | None, penalty: float
) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """Weight, bias, strength and out-of-fold numbers on standardised features."""
    if folds is None:
        weight, bias = _ridge_path(x, numbers, with_bias, (FIXED_STRENGTH * penalty,))
        return weight[0], bias[0], FIXED_STRENGTH * penalty, np.tile(numbers.mean(0), (len(x), 1))
    predicted = np.empty((len(STRENGTHS), *numbers.shape))
    for number in range(folds[0].max() + 1):
        out = folds[0] == number
        weight, bias = _ridge_path(x[~out], numbers[~out], with_bias, STRENGTHS)
        predicted[:, out] = x[out] @ weight.transpose(0, 2, 1) + bias[:, None]
    best = int(np.argmin(((predicted - numbers) ** 2).sum((1, 2))))
    weight, bias = _ridge_path(x, numbers, with_bias, (STRENGTHS[best] * penalty,))
    return weight[0], bias[0], STRENGTHS[best] * penalty, predicted[best]


def _ridge_path(
    x: np.ndarray, numbers: np.ndarray, with_bias: bool, strengths: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (strengths, outputs, columns) and biases (strengths, outputs) from one eigendecomposition."""
    scale = _scale(x, centred=with_bias)
    scale = np.where(scale > SAME, scale, np.inf)
    centre = x.mean(0, dtype=np.float64) * with_bias
    mean = numbers.mean(0) * with_bias
    unit = (x - centre) / scale
    wide = unit.shape[1] > len(unit)
    values, vectors = np.linalg.eigh((unit @ unit.T if wide else unit.T @ unit) / len(unit))
    # (x'x + s)^-1 x'y = x'(xx' + s)^-1 y: the smaller of the two matrices serves.
    right = vectors.T @ (numbers - mean if wide else unit.T @ (numbers - mean)) / len(unit)
    solved = [
        vectors @ (right / (np.maximum(values, 0.0)[:, None] + strength)) for strength in strengths
    ]
    weight = np.stack([(unit.T @ part if wide else part).T for part in solved]) / scale
    return weight, mean - weight @ centre
