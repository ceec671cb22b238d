"""Rates, epochs and batches from the size of data and model: a page of pure rules. Explicit flags win over them.

Three more rules are the defaults of TrainingConfig. Warm-up: a tenth of the steps, then a linear descent to zero, as
Mosbach et al. 2021 (arXiv 2006.04884) find stable on small data. Patience: none, for the best step is kept where there
is a validation split, and the others are seldom many. Augmentation: none, since no rule of ours knows whether what a
picture shows stays the same in a mirror.
"""

import math

FEWEST_STEPS = 120
FEWEST_EPOCHS, MOST_EPOCHS = 3, 200


def default_batch_size(examples: int) -> int:
    """Examples a device and step: 16 or 32, as Devlin et al. 2019 (arXiv 1810.04805); few examples make some steps."""
    return 16 if examples < 1000 else 32


def default_epochs(strategy: str, examples: int, examples_a_step: int) -> float:
    """Epochs until about FEWEST_STEPS steps are made, within bounds.

    On small data steps count, not epochs (Mosbach et al. 2021, arXiv 2006.04884). On digits from 2 to 32 labels a class
    120 steps of `full` were as good as 240. The contrastive loss sees half of the rows that `full` sees in its usual
    batches, however large its own are: each row is compared with all others. On short texts a fourth or twice as many
    moved the accuracy by a point at most.
    """
    if strategy == "contrastive":
        return default_epochs("full", examples, default_batch_size(examples)) / 2
    steps_an_epoch = math.ceil(examples / examples_a_step)
    return float(min(MOST_EPOCHS, max(FEWEST_EPOCHS, math.ceil(FEWEST_STEPS / steps_an_epoch))))


def default_learning_rate(strategy: str, parameters: int) -> float:
    """The peak rate of AdamW for transferred parameters.

    Everything learns: 5e-5 at the 110 million parameters of BERT-base and 2e-5 at the 340 million of BERT-large, which
    Devlin et al. 2019 (arXiv 1810.04805) search, and more for smaller networks along the same line: 2e-4 at the 22
    million of MiniLM, which measured better there than half of it; within 1e-5 and 1e-3. A head on fixed features:
    1e-2. Adapters: ten times the rate of the full network (Hu et al. 2021, arXiv 2106.09685, tables of
    hyperparameters), up to 3e-3.
    """
    if strategy == "head":
        return 1e-2
    rate = min(1e-3, max(1e-5, 5e-5 * (110e6 / max(parameters, 1)) ** 0.85))
    return min(3e-3, 10 * rate) if strategy == "lora" else rate


def default_trainable_layers(layers: int) -> int:
    """The top quarter, and at least one: it reaches nine tenths of the quality (Lee et al. 2019, arXiv 1911.03090)."""
    return max(1, math.ceil(layers / 4))


def default_weight_decay() -> float:
    """AdamW's own default (Loshchilov and Hutter 2019)."""
    return 0.01
