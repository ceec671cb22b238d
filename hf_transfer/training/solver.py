"""A linear head is solved, not stepped: regularised, cross-validated, deterministic, in a second.

The penalised problem is convex and its features do not change, so there is an answer to compute and no schedule to
tune. All folds and the fit on every row descend together: one matrix product serves them all, and the covariance of
the features, which their Hessians share, preconditions them all.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from hf_transfer.config import ProblemType
from hf_transfer.data.splits import strata_of_numbers, strata_of_sets
from hf_transfer.training.minimise import Vectors, minimise

FOLDS = 5
# Penalties of the mean loss, strong to weak, on features of unit scale. The path stops by itself before weak ends.
STRENGTHS = tuple(float(strength) for strength in 10.0 ** np.arange(1.0, -6.1, -0.5))
FIXED_STRENGTH = 0.1  # where nothing can be held out: what cross-validation settles on with two or three a class
PATIENCE = 2  # strengths in a row that may be worse than the best before the path stops
PATH_TOLERANCE, FINAL_TOLERANCE = 1e-5, 1e-9  # nats that a descent may end above its minimum
BLOCK_VALUES = 2**20  # logits held at once: they stay in a processor's cache, and memory does not grow with classes
ABSENT_LOGIT = -20.0  # of a class without an example; the largest other logit is never below 0, see _start
LEAST_CURVATURE = 1e-4  # of an output that is always sure, so that its step stays finite
SAME = 1e-6  # a column that deviates by less than this share of its size is constant, up to the rounding of 32 bits


@dataclass(frozen=True)
class SolvedHead:
    """A linear head and how it was found: logits = features @ weight.T + bias, on features as they were given."""

    weight: np.ndarray  # (outputs, features) float32, to be copied into nn.Linear
    bias: np.ndarray | None  # (outputs,) float32; None if asked for without one
    strength: float  # of the L2 penalty: strength / 2 * |weight|^2 next to the mean loss, on features of unit scale
    out_of_fold: np.ndarray  # (n, outputs) float32: probabilities (numbers) by heads that did not see the row


def solve_head(
    features: np.ndarray,
    labels: np.ndarray,
    problem_type: ProblemType,
    outputs: int,
    with_bias: bool = True,
    class_weights: np.ndarray | None = None,
    seed: int = 0,
) -> SolvedHead:
    """The linear head that minimises the mean loss plus the L2 penalty that cross-validation chooses.

    `features` (n, features); `labels` (n,) class numbers, (n, outputs) zeros and ones, or (n,) numbers to regress on.
    Single label: multinomial logistic regression, rows weighted by `class_weights` (outputs,). Multi-label: a logistic
    regression an output, one strength for all. Regression: ridge. The penalty acts on features that are centred and of
    unit deviation among the rows that a head learns from (without bias: of unit mean square, not centred).

    The strength is that of the least held-out log loss (squared error) over five stratified folds, fewer where no
    class has five members; rows of classes with one member do not vote. `out_of_fold` comes from the folds at that
    strength. Where fewer than half of the rows could vote (one label a class), the strength is FIXED_STRENGTH and
    `out_of_fold` repeats the shares of the labels (their mean): a head that leaves out the only member of a class has
    never seen the class, so leaving one out would say nothing.

    With a bias, a class without an example gets one that makes it never probable; without, it only learns to be
    improbable. The same input gives the same bits. Raises ValueError for what does not fit together.
    """
    features, labels = np.asarray(features, dtype=np.float32), np.asarray(labels)
    _check(features, labels, problem_type, outputs, class_weights)
    x, centre, factor = _standardise(features, with_bias)
    if problem_type == "regression":
        weight, bias, strength, out_of_fold = _solve_ridge(x, labels, outputs, with_bias, seed)
    else:
        row_weights = np.ones(len(x)) if class_weights is None else np.asarray(class_weights, dtype=np.float64)[labels]
        weight, bias, strength, out_of_fold = _solve_logistic(x, labels, outputs, with_bias, row_weights, seed)
    raw = weight * factor
    folded = (bias - raw @ centre).astype(np.float32) if with_bias else None
    return SolvedHead(raw.astype(np.float32), folded, strength, out_of_fold.astype(np.float32))


def _check(
    features: np.ndarray, labels: np.ndarray, problem_type: ProblemType, outputs: int, class_weights: np.ndarray | None
) -> None:
    if features.ndim != 2 or len(features) == 0 or len(features) != len(labels):
        raise ValueError(f"features {features.shape} and labels {labels.shape}: want (n, features) and n labels, n > 0")
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise ValueError(f"features of {(~finite).sum()} rows are not finite, the first is row {finite.argmin()}")
    if problem_type == "single_label_classification" and not 0 <= labels.min() <= labels.max() < outputs:
        raise ValueError(f"labels from {labels.min()} to {labels.max()}: {outputs} outputs want 0 to {outputs - 1}")
    if problem_type == "multi_label_classification" and labels.shape != (len(features), outputs):
        raise ValueError(f"labels {labels.shape}: {outputs} outputs want {(len(features), outputs)}")
    if problem_type == "regression" and (labels.size != len(features) * outputs or not np.isfinite(labels).all()):
        raise ValueError(f"labels {labels.shape}: {outputs} outputs want as many finite numbers a row")
    if class_weights is not None and (problem_type != "single_label_classification" or np.min(class_weights) <= 0):
        raise ValueError("class weights are for a single label a row, and above 0")


def _standardise(features: np.ndarray, with_bias: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features on a unit scale (float32), the centre that was taken off, the factor that was multiplied with.

    The factor of a constant column is 0, so that it has no say and its weight folds back to 0.
    """
    centre = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    centre = centre if with_bias else np.zeros_like(centre)
    x = features - centre
    deviation = _scale(x, centred=False)
    constant = deviation <= SAME * np.abs(centre)
    factor = np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, deviation)).astype(np.float32)
    x *= factor
    return x, centre.astype(np.float64), factor.astype(np.float64)


def _scale(x: np.ndarray, centred: bool) -> np.ndarray:
    """(columns,) root mean square of each column of `x`, about its mean if `centred`."""
    square = np.einsum("ij,ij->j", x, x, dtype=np.float64) / len(x)
    return np.sqrt(np.maximum(square - x.mean(axis=0, dtype=np.float64) ** 2, 0.0)) if centred else np.sqrt(square)


def _folds(strata: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Two of (n,): the fold of each row, every stratum shared out evenly, and which rows vote; None if too few do."""
    _, which, counts = np.unique(strata, return_inverse=True, return_counts=True)
    votes = counts[which] > 1
    if 2 * votes.sum() < len(strata):
        return None
    shuffled = np.random.default_rng(seed).permutation(len(strata))
    order = shuffled[np.argsort(which[shuffled], kind="stable")]
    fold = np.empty(len(strata), dtype=np.int64)
    # Dealt like cards, on from one stratum to the next, so that small strata do not all begin at the first fold.
    fold[order] = np.arange(len(strata)) % min(FOLDS, counts.max())
    return fold, votes


# --- classification ---


@dataclass(frozen=True)
class _Problems:
    """Logistic regressions on one table of features, solved together: one without each fold, the last on every row.

    Weights are (problems * outputs, columns); the last column is the bias, where there is one.
    """

    x: torch.Tensor  # (n, columns)
    labels: torch.Tensor  # (n,) class numbers, or (n, outputs) zeros and ones
    outputs: int
    row_weights: torch.Tensor  # (n, problems); each column sums to 1 and is 0 where the problem does not look
    penalties: torch.Tensor  # (problems * outputs, columns): what the strength is multiplied with
    learns: torch.Tensor  # (problems * outputs, 1): 0 for an output whose labels in the problem are all the same

    @property
    def count(self) -> int:
        return self.row_weights.shape[1]

    def last(self) -> "_Problems":
        """The problem of all rows alone."""
        own = slice(-self.outputs, None)
        return _Problems(
            self.x, self.labels, self.outputs, self.row_weights[:, -1:], self.penalties[own], self.learns[own]
        )

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
        size = max(1, BLOCK_VALUES // len(weight))
        for start in range(0, len(self.x), size):
            rows = slice(start, start + size)
            yield rows, (self.x[rows] @ weight.T).view(-1, self.count, self.outputs)

    def gradient(self, weight: torch.Tensor, strength: float) -> torch.Tensor:
        """The exact gradient of every problem, shaped as `weight`."""
        total = self.penalties * weight * strength
        for rows, logits in self.logits(weight):
            labels = self.labels[rows]
            targets = F.one_hot(labels, self.outputs) if labels.ndim == 1 else labels
            residuals = self.probabilities(logits).sub_(targets[:, None]).mul_(self.row_weights[rows, :, None])
            total.addmm_(residuals.view(len(labels), -1).T, self.x[rows])
        return total.mul_(self.learns)

    def held_out(self, weight: torch.Tensor, fold: torch.Tensor) -> torch.Tensor:
        """(n, outputs) logits of each row by the problem that does not look at it."""
        return torch.cat([logits[torch.arange(len(logits)), fold[rows]] for rows, logits in self.logits(weight)])


@dataclass(frozen=True)
class _Spectrum:
    """Eigenvectors (columns, rank) and eigenvalues (rank,) of the features' second moment, and what it penalises."""

    vectors: torch.Tensor
    values: torch.Tensor
    penalised: torch.Tensor  # (rank,): 0 for the bias, 1 for all else

    def precondition(self, gradient: Vectors, curvature: torch.Tensor, strength: float) -> Vectors:
        """The gradient times the inverse of the Hessian, as if the latter were curvature (outputs,) x second moment."""
        rows = gradient.view(-1, len(self.vectors))
        hessian = curvature[:, None] * self.values + strength * self.penalised
        inside = (1 / hessian - 1 / strength).repeat(len(rows) // len(curvature), 1)
        return ((rows @ self.vectors * inside) @ self.vectors.T).add_(rows, alpha=1 / strength).view_as(gradient)


def _solve_logistic(
    x: np.ndarray, labels: np.ndarray, outputs: int, with_bias: bool, row_weights: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """Weight, bias, strength and out-of-fold probabilities on standardised features."""
    strata = labels if labels.ndim == 1 else np.array(strata_of_sets(labels.tolist()), dtype=np.int64)
    folds = _folds(strata, seed)
    looks = np.ones((len(x), 1), dtype=bool)
    if folds is not None:
        looks = np.concatenate([folds[0][:, None] != np.arange(folds[0].max() + 1), looks], axis=1)
    problems = _pose(x, labels, outputs, with_bias, looks * row_weights[:, None])
    spectrum = _decompose(x, with_bias)
    weight = _start(problems, with_bias)
    if folds is None:
        logits, strength = (weight[:, -1] if with_bias else weight.sum(1)).expand(len(x), -1), FIXED_STRENGTH
    else:
        votes = torch.from_numpy(folds[1] * row_weights)
        weight, logits, strength = _follow_path(problems, spectrum, weight, torch.from_numpy(folds[0]), votes)
    probabilities = problems.probabilities(logits)
    weight = _descend(problems.last(), spectrum, weight[-outputs:], probabilities, strength, FINAL_TOLERANCE)
    solved = weight.double().numpy()
    bias = solved[:, -1] if with_bias else np.zeros(outputs)
    return solved[:, : x.shape[1]], bias, strength, probabilities.numpy()


def _pose(x: np.ndarray, labels: np.ndarray, outputs: int, with_bias: bool, weights: np.ndarray) -> _Problems:
    """The problems that give the rows these weights (n, problems); each penalises features on its own unit scale."""
    targets = np.eye(outputs, dtype=np.float32)[labels] if labels.ndim == 1 else labels.astype(np.float32)
    looks = (weights > 0).astype(np.float32)
    positives = looks.T @ targets
    learns = (positives > 0) & (positives < looks.sum(0)[:, None]) if with_bias else np.ones_like(positives)
    scales = np.stack([_scale(x[look], centred=with_bias) for look in looks.T > 0])
    # A column that is constant in a fold is collinear with the bias; any penalty keeps its weight at 0.
    penalties = np.where(scales > SAME, scales**2, 1.0)
    if with_bias:
        x = np.concatenate([x, np.ones((len(x), 1), dtype=np.float32)], axis=1)
        penalties = np.concatenate([penalties, np.zeros((len(penalties), 1))], axis=1)
    return _Problems(
        x=torch.from_numpy(x),
        labels=torch.from_numpy(labels.astype(np.int64) if labels.ndim == 1 else targets),
        outputs=outputs,
        row_weights=torch.from_numpy((weights / weights.sum(0)).astype(np.float32)),
        penalties=torch.from_numpy(penalties.astype(np.float32)).repeat_interleave(outputs, 0),
        learns=torch.from_numpy(learns.astype(np.float32).reshape(-1, 1)),
    )


def _decompose(x: np.ndarray, with_bias: bool) -> _Spectrum:
    """The spectrum of x'x / n by way of the smaller of x'x and xx'; the bias is a direction of its own."""
    wide = x.shape[1] > len(x)
    values, vectors = np.linalg.eigh((x @ x.T if wide else x.T @ x).astype(np.float64) / len(x))
    kept = values > SAME * max(values[-1], SAME)
    values, vectors = values[kept], vectors[:, kept]
    if wide:
        vectors = (x.T @ vectors.astype(np.float32)) / np.sqrt(values * len(x))
    penalised = np.ones(len(values))
    if with_bias:
        vectors = np.pad(vectors, ((0, 1), (0, 1)))
        vectors[-1, -1] = 1.0
        values, penalised = np.append(values, 1.0), np.append(penalised, 0.0)
    return _Spectrum(*(torch.from_numpy(part.astype(np.float32)) for part in (vectors, values, penalised)))


def _start(problems: _Problems, with_bias: bool) -> torch.Tensor:
    """Weights 0, biases the logs of the labels' shares; half an example for what a problem has none of.

    Biases of classes that occur have mean 0. They keep it, and the weights too, since the gradient of the softmax sums
    to 0 over classes: whatever the features, the largest logit is at least 0, and ABSENT_LOGIT is never probable.
    """
    weight = torch.zeros_like(problems.penalties)
    if not with_bias:
        return weight
    labels = problems.labels
    targets = F.one_hot(labels, problems.outputs).float() if labels.ndim == 1 else labels
    half = 0.5 / len(targets)
    share = problems.row_weights.T @ targets
    if labels.ndim == 1:
        occurs = targets.amax(0) > 0
        logits = share.clamp(min=half).log()
        logits -= logits[:, occurs].mean(1, keepdim=True)
        logits[:, ~occurs] = ABSENT_LOGIT
    else:
        logits = ((share + half) / (1 - share + half)).log()
    weight[:, -1] = logits.flatten()
    return weight


def _follow_path(
    problems: _Problems, spectrum: _Spectrum, weight: torch.Tensor, fold: torch.Tensor, votes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Weights, held-out logits and strength where the held-out loss is least, from strong to weak."""
    least, best, worse = float("inf"), (weight, weight, STRENGTHS[0]), 0
    logits = problems.held_out(weight, fold)
    for strength in STRENGTHS:
        weight = _descend(problems, spectrum, weight, problems.probabilities(logits), strength, PATH_TOLERANCE)
        logits = problems.held_out(weight, fold)
        loss = float(problems.losses(logits).double() @ votes)
        if loss < least:
            least, best, worse = loss, (weight, logits, strength), 0
        else:
            worse += 1
        if worse == PATIENCE:
            break
    return best


def _descend(
    problems: _Problems,
    spectrum: _Spectrum,
    start: torch.Tensor,
    probabilities: torch.Tensor,
    strength: float,
    tolerance: float,
) -> torch.Tensor:
    """The weights that minimise every problem. `probabilities` (n, outputs), about the answer's, scale the Hessian."""
    curvature = (probabilities * (1 - probabilities)).mean(0).clamp(min=LEAST_CURVATURE)
    found = minimise(
        lambda vectors: problems.gradient(vectors.view_as(start), strength).view(problems.count, -1),
        start.reshape(problems.count, -1),
        lambda vectors: spectrum.precondition(vectors, curvature, strength),
        tolerance,
    )
    return found.view_as(start)


# --- regression ---


def _solve_ridge(
    x: np.ndarray, labels: np.ndarray, outputs: int, with_bias: bool, seed: int
) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """Weight, bias, strength and out-of-fold numbers on standardised features."""
    numbers = labels.astype(np.float64).reshape(len(x), outputs)
    strata = np.array(strata_of_numbers(numbers[:, 0].tolist()), dtype=np.int64)
    # Strata of one value each would leave no folds; numbers, unlike classes, can be held out all the same.
    folds = _folds(strata, seed) or (_folds(np.zeros(len(x)), seed) if len(x) > 1 else None)
    if folds is None:
        mean = numbers.mean(0) if with_bias else np.zeros(outputs)
        weight, bias = _ridge_path(x, numbers, with_bias, (FIXED_STRENGTH,))
        return weight[0], bias[0], FIXED_STRENGTH, np.tile(mean, (len(x), 1))
    predicted = np.empty((len(STRENGTHS), len(x), outputs))
    for number in range(folds[0].max() + 1):
        out = folds[0] == number
        weight, bias = _ridge_path(x[~out], numbers[~out], with_bias, STRENGTHS)
        predicted[:, out] = x[out] @ weight.transpose(0, 2, 1) + bias[:, None]
    best = int(np.argmin(((predicted - numbers) ** 2).sum((1, 2))))
    weight, bias = _ridge_path(x, numbers, with_bias, (STRENGTHS[best],))
    return weight[0], bias[0], STRENGTHS[best], predicted[best]


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
    solved = [vectors @ (right / (np.maximum(values, 0.0)[:, None] + strength)) for strength in strengths]
    weight = np.stack([(unit.T @ part if wide else part).T for part in solved]) / scale
    return weight, mean - weight @ centre
