"""Learning rate, epochs and batch size from the size of data and model: a page of pure rules.

Explicit flags win over them. Three more rules are the defaults of TrainingConfig:

- Warm-up: a tenth of the steps, then a linear descent to zero, as Mosbach et al. 2021 (arXiv
  2006.04884) find stable on small data.
- Early stopping: none, since the best step is restored where there is a validation split, and
  seldom are there many others.
- Augmentation: none, since no rule here knows whether the content of an image stays the same in a
  mirror.
"""

import math

MIN_STEPS = 120
MIN_EPOCHS = 3
MAX_EPOCHS = 200


def default_batch_size(examples: int) -> int:
    """Examples per device and step: 16 or 32, as Devlin et al. 2019 (arXiv 1810.04805).

    The smaller one makes more steps of few examples.
    """
    return 16 if examples < 1000 else 32


def default_epochs(strategy: str, examples: int, examples_per_step: int) -> float:
    """Epochs that make about MIN_STEPS steps, from MIN_EPOCHS to MAX_EPOCHS.

    On small data steps count, not epochs (Mosbach et al. 2021, arXiv 2006.04884). On digits from 2
    to 32 labels per class 120 steps of `full` were as good as 240.

    The contrastive loss is given half of the rows that `full` sees in its default batches, however
    large its own are: each row is compared with all others. On short texts a fourth or twice as
    many moved the accuracy by a point at most.
    """
    if strategy == "contrastive":
        return default_epochs("full", examples, default_batch_size(examples)) / 2
    steps_per_epoch = math.ceil(examples / examples_per_step)
    return float(min(MAX_EPOCHS, max(MIN_EPOCHS, math.ceil(MIN_STEPS / steps_per_epoch))))


def default_learning_rate(strategy: str, parameters: int) -> float:
    """The peak learning rate of AdamW for transferred parameters.

    - All layers: 5e-5 at the 110 million parameters of BERT-base and 2e-5 at the 340 million of
      BERT-large, the values that Devlin et al. 2019 (arXiv 1810.04805) search, and more for smaller
      models along the same line: 2e-4 at the 22 million of MiniLM, which measured better there than
      half of it. Within 1e-5 and 1e-3.
    - A head on frozen features: 1e-2.
    - Adapters: ten times the learning rate of the full model (Hu et al. 2021, arXiv 2106.09685,
      tables of hyperparameters), up to 3e-3.
    """
    if strategy == "head":
        return 1e-2
    rate = min(1e-3, max(1e-5, 5e-5 * (110e6 / max(parameters, 1)) ** 0.85))
    return min(3e-3, 10 * rate) if strategy == "lora" else rate


def default_trainable_layers(layers: int) -> int:
    """The top quarter of the layers, and at least one.

    It reaches nine tenths of the quality (Lee et al. 2019, arXiv 1911.03090).
    """
    return max(1, math.ceil(layers / 4))


def default_weight_decay() -> float:
    """AdamW's own default (Loshchilov and Hutter 2019)."""
    return 0.01
