"""Packed rows: which texts of a padded batch share one, and where their tokens stand in it."""

import heapq
from collections.abc import Iterator

import torch

MAX_WASTE = 1.02  # places of the packed rows per token
MIN_LENGTH = 0.75  # of a text, relative to the longest that attention computes it with

Rows = list[list[int]]  # the numbers of the texts in each row


def share_rows(lengths: list[int], longest: int, most_rows: int) -> tuple[Rows, int]:
    """Which texts each row holds, and the width of the rows, longer than the `longest` text.

    As many rows as leave at most MAX_WASTE: the fewer, the more pairs of texts attention computes
    in vain. The next longest text goes to the row with the fewest tokens (Graham 1969).
    """
    tokens = sum(lengths)
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    for count in range(min(most_rows, int(MAX_WASTE * tokens / longest)), 1, -1):
        rows: list[tuple[int, int, list[int]]] = [(0, row, []) for row in range(count)]
        for text in by_length:
            filled, row, texts = rows[0]
            heapq.heapreplace(rows, (filled + lengths[text], row, [*texts, text]))
        # Wider than the padded batch: the shape of a tensor tells whether it is packed.
        width = max(longest + 1, max(rows)[0])
        if count * width <= MAX_WASTE * tokens:
            return [texts for _, _, texts in rows], width
    return [by_length], max(longest + 1, tokens)


class Layout:
    """Where the tokens of a padded batch, with `mask` (texts, length), stand in packed rows.

    Free places are copies of the first token, and attend to each other alone.
    """

    def __init__(self, mask: torch.Tensor, lengths: list[int], rows: Rows, width: int) -> None:
        self.padded = mask.shape
        self.packed = torch.Size((len(rows), width))
        starts = [0] * len(lengths)
        for number, texts in enumerate(rows):
            start = number * width
            for text in texts:
                starts[text] = start
                start += lengths[text]
        self.places = mask.flatten().nonzero().squeeze(1)
        owners = self.places // mask.shape[1]
        before = torch.tensor([0, *lengths[:-1]], device=mask.device).cumsum(0)
        first = torch.tensor(starts, device=mask.device)
        self.slots = (first - before)[owners] + torch.arange(len(owners), device=mask.device)
        self.source = self.places[:1].repeat(self.packed.numel())
        self.source[self.slots] = self.places
        owner = torch.full_like(self.source, -1)
        owner[self.slots] = owners
        owner = owner.view(self.packed)
        self.together = owner[:, :, None] == owner[:, None]  # pairs of tokens of one text
        self.groups = [
            Group(first[texts], mask[texts].sum(1)) for texts in similar_lengths(lengths)
        ]

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        """What a layer takes, packed where its shape is that of tokens or of pairs of them."""
        shape = tensor.shape
        if tensor.ndim not in (2, 3, 4) or shape[0] not in (1, self.padded[0]):
            return tensor
        has_pairs = tensor.ndim == 4 or (tensor.ndim == 3 and not tensor.is_floating_point())
        if has_pairs and shape[-1] == self.padded[1] and shape[-2] in (1, self.padded[1]):
            pairs = tensor if tensor.ndim == 4 else tensor[:, None]
            pairs = pairs.expand(self.padded[0], -1, self.padded[1], -1)
            packed = gather_pairs(pairs, self.source.view(self.packed), self.together)
            return packed if tensor.ndim == 4 else packed.squeeze(1)
        if tensor.ndim < 4 and shape[1] == self.padded[1]:
            tokens = tensor.expand(*self.padded, *shape[2:]).flatten(0, 1)
            return tokens.index_select(0, self.source).unflatten(0, self.packed)
        return tensor

    def unpack(self, tensor: torch.Tensor) -> torch.Tensor:
        """Hidden states (texts, length, width) of packed ones, zeros at padding; others as is."""
        if tensor.ndim != 3 or tensor.shape[:2] != self.packed:
            return tensor
        tokens = tensor.flatten(0, 1).index_select(0, self.slots)
        padded = tensor.new_zeros(self.padded.numel(), tensor.shape[2])
        return padded.index_copy(0, self.places, tokens).unflatten(0, self.padded)

    def group_masks(self, mask: torch.Tensor) -> list[torch.Tensor]:
        """A packed mask (rows, heads, width, width) as one of each group."""
        return [gather_pairs(mask, group.slots, group.real[:, None]) for group in self.groups]


class Group:
    """Texts of similar lengths, which attention computes together.

    `slots` (texts, longest) are the places of their tokens in the packed rows, where `real`.
    """

    def __init__(self, starts: torch.Tensor, lengths: torch.Tensor) -> None:
        column = torch.arange(int(lengths.max()), device=lengths.device)
        self.real = column < lengths[:, None]
        self.slots = starts[:, None] + column * self.real  # elsewhere the first token again

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        """(texts, heads, longest, width) of (rows, heads, places, width)."""
        tokens = tensor.transpose(1, 2).flatten(0, 1).index_select(0, self.slots.flatten())
        return tokens.unflatten(0, self.slots.shape).transpose(1, 2)


def similar_lengths(lengths: list[int]) -> Iterator[list[int]]:
    """The numbers of texts in groups, none of which is shorter than MIN_LENGTH of the longest."""
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    group = by_length[:1]
    for text in by_length[1:]:
        if lengths[text] < MIN_LENGTH * lengths[group[0]]:
            yield group
            group = []
        group.append(text)
    yield group


def gather_pairs(
    tensor: torch.Tensor, places: torch.Tensor, together: torch.Tensor
) -> torch.Tensor:
    """(rows, heads, width, width) from (texts, heads, length, length), of `places` (rows, width).

    Pairs that are not `together` (rows, 1 or width, width) have 0, False, or the lowest number.
    """
    text = places // tensor.shape[-1]
    column = places % tensor.shape[-1]
    by_head_last = tensor.movedim(1, -1)
    pairs = by_head_last[text[:, :, None], column[:, :, None], column[:, None]].movedim(-1, 1)
    apart = torch.finfo(tensor.dtype).min if tensor.is_floating_point() else 0
    return pairs.masked_fill(~together[:, None], apart)
