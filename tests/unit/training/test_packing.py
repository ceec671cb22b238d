import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    set_seed,
)

from hf_transfer.cli.flags import read_config
from hf_transfer.config.data import DataConfig
from hf_transfer.config.validate import validate
from hf_transfer.data.sources import load_data
from hf_transfer.errors import UserError
from hf_transfer.models.head import read_logits
from hf_transfer.preflight import require_known_names
from hf_transfer.studies.choose import choose_plan
from hf_transfer.tasks import find_task
from hf_transfer.training.batches import SampledOrder
from hf_transfer.training.engine import Trained, run_plan
from hf_transfer.training.packed_rows import MAX_WASTE, Layout, share_rows
from hf_transfer.training.packing import (
    Packing,
    UnpackableError,
    packable_blocks,
    require_same_logits,
)
from tests import checkpoints
from tests.architectures.tiny import tiny_config

LENGTHS = (10, 4, 9, 5, 8, 6, 7, 7)  # in four rows of 14
# fmt: off
PACKED = (
    "albert", "bart", "bert", "camembert", "distilbert", "electra", "ernie",
    "gpt2", "llama", "mistral", "modernbert", "mpnet", "qwen2", "roberta", "t5",
    "xlm-roberta",
)
# fmt: on
# As in the checkpoints that people use.
SETTINGS = {"deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}}
# Architectures whose batches stay padded, and why.
PADDED = {
    "bloom": "fail",  # its bias of positions has the heads of all texts in one axis
    "convbert": "change the logits",  # its convolutions reach into the next text
    "deberta-v2": "fail",  # its relative positions are the same for all rows
    "fnet": "change the logits",  # it mixes all positions of a row
    "qwen3_next": "change the logits",  # a state runs through the row
    "xlnet": "do not pass on",  # it has positions first, then texts
}


def _model(name: str, **changes: Any) -> Any:
    set_seed(0)
    config = tiny_config(name, pad_token_id=0, **SETTINGS.get(name, {}), **changes)
    return AutoModelForSequenceClassification.from_config(config).eval()


def _batch(model: Any, lengths: tuple[int, ...] = LENGTHS) -> dict[str, torch.Tensor]:
    """Texts of several lengths, padded on the right."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    tokens = torch.randint(5, 100, mask.shape, generator=torch.Generator().manual_seed(0))
    tokens[torch.arange(len(lengths)), torch.tensor(lengths) - 1] = model.config.eos_token_id or 2
    return {"input_ids": tokens * mask, "attention_mask": mask.long()}


@pytest.mark.parametrize("name", PACKED)
def test_packed_texts_have_the_logits_that_they_have_padded(name: str) -> None:
    model = _model(name)
    for most_rows, width in ((len(LENGTHS), 14), (1, sum(LENGTHS))):
        packing = Packing(model, packable_blocks(model), most_rows=most_rows)
        assert require_same_logits(packing, _batch(model)) == width


def test_the_logits_of_tokens_are_compared_without_those_of_padding() -> None:
    set_seed(0)
    model = AutoModelForTokenClassification.from_config(tiny_config("bert", pad_token_id=0))
    packing = Packing(model, packable_blocks(model))
    assert require_same_logits(packing, _batch(model)) == 14
    assert packing.grouped


def test_most_of_the_common_architectures_are_packed() -> None:
    assert len(PACKED) >= 16
    assert not set(PACKED).intersection(PADDED)


@pytest.mark.parametrize(("name", "reason"), PADDED.items())
def test_an_architecture_that_mixes_texts_of_a_row_is_refused(name: str, reason: str) -> None:
    model = _model(name)
    with pytest.raises(UnpackableError, match=reason):
        require_same_logits(Packing(model, packable_blocks(model)), _batch(model))


def test_a_model_that_leaves_out_layers_at_random_is_refused() -> None:
    with pytest.raises(UnpackableError, match="encoder_layerdrop"):
        packable_blocks(_model("bart", encoder_layerdrop=0.1))


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["bert", "llama", "modernbert"])
def test_packed_texts_have_the_gradient_that_they_have_padded(
    name: str, attention: str, checkpointing: bool
) -> None:
    model = _model(name)
    model.set_attn_implementation(attention)
    if checkpointing:
        model.gradient_checkpointing_enable()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.train()
    batch = _batch(model)
    gradients = []
    for packing in (None, Packing(model, packable_blocks(model))):
        model.zero_grad()
        with packing.running() if packing else torch.enable_grad():
            logits = read_logits(model(**batch))
            F.cross_entropy(logits, torch.arange(len(logits)) % logits.shape[1]).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
        assert packing is None or packing.computed < packing.padded
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


def test_packing_leaves_no_trace_in_the_model() -> None:
    model = _model("bert")
    batch = _batch(model)
    before = read_logits(model(**batch))
    with Packing(model, packable_blocks(model)).running():
        model(**batch)
    torch.testing.assert_close(read_logits(model(**batch)), before, rtol=0, atol=0)


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_at_most_2_percent_more_tokens_are_computed_than_there_are(strategy: str) -> None:
    draws = np.random.default_rng(0).lognormal(np.log(64) - 0.5, 1.0, 2048)  # their mean is 64
    lengths = np.clip(draws.astype(int), 2, 512)
    order = SampledOrder(len(lengths), 0, strategy, lengths.tolist(), 32).of_epoch(0)
    computed = 0
    for batch in lengths[np.asarray(order)].reshape(-1, 32).tolist():
        rows, width = share_rows(batch, max(batch), len(batch))
        assert sorted(text for row in rows for text in row) == list(range(32))
        assert max(sum(batch[text] for text in row) for row in rows) <= width
        computed += len(rows) * width
    assert 1 <= computed / lengths.sum() <= MAX_WASTE == 1.02


def test_states_of_tokens_are_the_same_after_packing_and_unpacking() -> None:
    mask = _batch(_model("bert"))["attention_mask"].flip(1)  # padded on the left
    states = torch.randn(*mask.shape, 4)
    layout = Layout(mask, list(LENGTHS), *share_rows(list(LENGTHS), 10, 8))
    packed = layout.pack(states)
    assert packed.shape == (*layout.packed, 4)
    torch.testing.assert_close(layout.unpack(packed), states * mask[..., None], rtol=0, atol=0)


def _trained(tmp_path: Path, folder: Path, *flags: str, dropout: float = 0.0) -> Trained:
    given = ["--model_name_or_path", "x", "--dataset_name", "y", "--output_dir", str(tmp_path)]
    # With AdamW rounding would decide the steps of biases that have no gradient.
    plain = ["--optim", "sgd", "--learning_rate", "0.1", "--use_cpu", "--disable_tqdm", "true"]
    steps = ["--max_steps", "6", *plain, *flags]
    config = read_config(argv=[*given, *steps])
    task = find_task("text-classification")
    data = load_data(DataConfig("builtin:docstrings", examples_per_class=3), task, seed=0)
    checkpoint = checkpoints.load(str(folder), task, data.labels)
    for module in checkpoint.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    plan = choose_plan(config.transfer, checkpoint, data, config.training, config.cache).plan
    return run_plan(plan, checkpoint, data, config.training, config.cache)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize(
    "flags",
    [
        ("--strategy", "full"),
        ("--strategy", "lora"),
        ("--strategy", "contrastive"),
        ("--strategy", "full", "--gradient_checkpointing"),
        ("--strategy", "top_layers", "--trainable_layers", "1"),
    ],
    ids=" ".join,
)
def test_training_on_packed_texts_gives_the_same_weights(
    flags: tuple[str, ...], tiny_bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    padded = _trained(tmp_path / "padded", tiny_bert, *flags)
    with caplog.at_level(logging.INFO):
        packed = _trained(tmp_path / "packed", tiny_bert, *flags, "--pack")
    assert "--pack: 1.0" in caplog.text
    before = AutoModelForSequenceClassification.from_pretrained(tiny_bert).state_dict()
    after = packed.model.state_dict()
    learned = "bert.encoder.layer.1.output.dense.weight"
    assert (after[learned] - before[learned]).abs().max() > 1e-4
    torch.testing.assert_close(after, padded.model.state_dict(), rtol=1e-3, atol=1e-5)


def test_with_dropout_and_bfloat16_packed_texts_are_learned_from(
    tiny_bert: Path, tmp_path: Path
) -> None:
    trained = _trained(tmp_path, tiny_bert, "--strategy", "full", "--pack", "--bf16", dropout=0.1)
    assert all(np.isfinite(entry.loss) for entry in trained.phases[0].history if entry.loss)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("convbert", "packed texts change the logits"), ("mpnet", "on a CPU it is slower")],
)
def test_where_texts_stay_padded_the_log_says_why(
    name: str, reason: str, tiny_bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / name
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    _model(name).save_pretrained(folder)
    trained = _trained(tmp_path / "out", folder, "--strategy", "full", "--pack")
    assert trained.phases[0].steps == 6
    assert f"--pack: texts are padded: {reason}" in caplog.text


def test_images_are_not_packed(tmp_path: Path) -> None:
    given = ["--model_name_or_path", "x", "--dataset_name", "y", "--output_dir", str(tmp_path)]
    config = read_config(argv=[*given, "--pack"])
    with pytest.raises(UserError, match="--pack is for texts"):
        require_known_names(config, find_task("image-classification"))


def test_packing_is_not_compiled(tmp_path: Path) -> None:
    given = ["--model_name_or_path", "x", "--dataset_name", "y", "--output_dir", str(tmp_path)]
    with pytest.raises(UserError, match="--pack with --torch_compile"):
        validate(read_config(argv=[*given, "--pack", "--torch_compile"]))
