"""AdamW's two moments of flat parameters: in the parameters' own format, or in 8 bits.

In 8 bits (arXiv 2110.02861, as bitsandbytes' AdamW8bit) a moment is a code of the dynamic map in each byte and a
scale for each block of 256: 2.03 bytes a parameter for both in place of 8. They are unpacked, moved and packed again
part by part, so that they never lie in memory in float32 as a whole.

Some parameters keep 32 bits, as they do there: tensors of fewer than 4,096 elements (norms, biases), which weigh
nothing and whose numbers differ most from their neighbours', and those of embeddings. An embedding's row has a gradient
only where its token occurs; beside a row with a large moment a small one falls between two levels that lie further
apart than it decays in a step, and never ends.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lorakit.kernels.packed.dynamic import BLOCK, blocks_of, pack, unpack
from lorakit.lora.embedding import LoraEmbedding

SMALL = 4096
"""Tensors of fewer elements keep moments in 32 bits."""
BYTES_8BIT = 2 + 2 * 4 / BLOCK
"""Of both moments of a parameter, scales included."""
_PIECE = 1 << 18
_NAMES = ("exp_avg", "exp_avg_sq")

Pair = tuple[Tensor, Tensor]
State = dict[str, Tensor]


def of_embeddings(modules: Iterable[nn.Module]) -> set[nn.Parameter]:
    """The parameters whose gradients come by token: of embeddings, and of pairs on them."""
    return {
        parameter
        for module in modules
        if isinstance(module, nn.Embedding | LoraEmbedding)
        for parameter in module.parameters()
    }


class FlatMoments(ABC):
    """Both moments of (n,) parameters."""

    @abstractmethod
    def parts(self, largest: int | None) -> Iterator[slice]:
        """What a step takes one after the other; none above `largest` elements."""

    @abstractmethod
    def read(self, part: slice) -> Pair:
        """Both moments of a part, or of a parameter: to be changed in place, and written."""

    @abstractmethod
    def write(self, part: slice, moments: Pair) -> None:
        """Take the moments of a part, or of a parameter."""

    @abstractmethod
    def state(self) -> State:
        """The tensors themselves, by name."""

    @abstractmethod
    def narrow(self) -> State:
        """A copy on the CPU, of what is float in bfloat16: 3 digits of a moment are enough."""

    @abstractmethod
    def cut(self, part: slice, narrow: State) -> Pair:
        """Of such a copy a parameter's moments, in bfloat16."""

    @property
    def bytes(self) -> int:
        """Of both."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.state().values())


class WideMoments(FlatMoments):
    """Moments in the format of what the optimizer moves."""

    def __init__(self, like: Tensor) -> None:
        self._both = (torch.zeros_like(like), torch.zeros_like(like))

    def parts(self, largest: int | None) -> Iterator[slice]:
        """All of it, or pieces of that size."""
        count = len(self._both[0])
        yield from _pieces(0, count, largest or count)

    def read(self, part: slice) -> Pair:
        """Views."""
        first, second = self._both
        return first[part], second[part]

    def write(self, part: slice, moments: Pair) -> None:
        """Copy what is not there already."""
        for ours, theirs in zip(self.read(part), moments, strict=True):
            if ours.data_ptr() != theirs.data_ptr():
                ours.copy_(theirs)

    def state(self) -> State:
        """Both as they are."""
        return dict(zip(_NAMES, self._both, strict=True))

    def narrow(self) -> State:
        """Both in bfloat16."""
        return {name: tensor.to("cpu", torch.bfloat16) for name, tensor in self.state().items()}

    def cut(self, part: slice, narrow: State) -> Pair:
        """Views."""
        return narrow["exp_avg"][part], narrow["exp_avg_sq"][part]


@dataclass(frozen=True)
class _Stretch:
    """Parameters start to stop whose blocks follow one another from `block` on."""

    start: int
    stop: int
    block: int


class PackedMoments(FlatMoments):
    """Moments in 8 bits, but for the first `wide` parameters.

    Args:
        sizes: of the tensors after those, in their order: a block never lies in two of them.
        wide: parameters at the beginning that keep the format of `like`.
        like: what the optimizer moves.
    """

    def __init__(self, sizes: Sequence[int], wide: int, like: Tensor) -> None:
        self._wide, self._like = wide, like
        self._first = WideMoments(like[:wide])
        self._stretches: list[_Stretch] = []
        start, block = wide, 0
        for size in sizes:
            last = self._stretches[-1] if self._stretches else None
            if last is not None and (last.stop - last.start) % BLOCK == 0:
                self._stretches[-1] = _Stretch(last.start, start + size, last.block)
            else:
                self._stretches.append(_Stretch(start, start + size, block))
            start, block = start + size, block + blocks_of(size)
        device = like.device
        self._codes = [torch.zeros(start - wide, dtype=torch.uint8, device=device) for _ in _NAMES]
        self._scales = [torch.zeros(block, device=device) for _ in _NAMES]
        # A code of zero is the lowest level, which is no zero for the first moment; the scale is.

    def parts(self, largest: int | None) -> Iterator[slice]:
        """Pieces of the wide ones, and of each run; each begins where a block does."""
        if self._wide:
            yield from _pieces(0, self._wide, largest or self._wide)
        step = min(_PIECE, largest or _PIECE) // BLOCK * BLOCK or BLOCK
        for run in self._stretches:
            yield from _pieces(run.start, run.stop, step)

    def read(self, part: slice) -> Pair:
        """Views of the wide ones; of others what the codes say."""
        if part.stop <= self._wide:
            return self._first.read(part)
        first, second = self._unpacked(part, self._codes, self._scales)
        return first.to(self._like.dtype), second.to(self._like.dtype)

    def write(self, part: slice, moments: Pair) -> None:
        """Copy the wide ones, pack the others."""
        if part.stop <= self._wide:
            self._first.write(part, moments)
            return
        elements, blocks = self._places(part)
        for index, numbers in enumerate(moments):
            codes, scales = self._codes[index][elements], self._scales[index][blocks]
            pack(numbers.to(scales), codes, scales, signed=index == 0)

    def state(self) -> State:
        """What there is of wide moments, codes and scales."""
        wide = self._first.state() if self._wide else {}
        codes = {f"{name}_codes": each for name, each in zip(_NAMES, self._codes, strict=True)}
        scales = {f"{name}_scales": each for name, each in zip(_NAMES, self._scales, strict=True)}
        return wide | (codes | scales if self._stretches else {})

    def narrow(self) -> State:
        """Codes and scales as they are."""
        packed = self.state().items()
        wide = self._first.narrow() if self._wide else {}
        return wide | {name: t.to("cpu", copy=True) for name, t in packed if name not in wide}

    def cut(self, part: slice, narrow: State) -> Pair:
        """Unpacked where it is packed."""
        if part.stop <= self._wide:
            return self._first.cut(part, narrow)
        codes = [narrow[f"{name}_codes"] for name in _NAMES]
        scales = [narrow[f"{name}_scales"] for name in _NAMES]
        first, second = self._unpacked(part, codes, scales)
        return first.bfloat16(), second.bfloat16()

    def _unpacked(self, part: slice, codes: list[Tensor], scales: list[Tensor]) -> Pair:
        elements, blocks = self._places(part)
        first = unpack(codes[0][elements], scales[0][blocks], signed=True)
        return first, unpack(codes[1][elements], scales[1][blocks], signed=False)

    def _places(self, part: slice) -> tuple[slice, slice]:
        """Which codes and which scales are a part's."""
        run = next(run for run in self._stretches if run.start <= part.start < run.stop)
        block = run.block + (part.start - run.start) // BLOCK
        elements = slice(part.start - self._wide, part.stop - self._wide)
        return elements, slice(block, block + blocks_of(part.stop - part.start))


def _pieces(start: int, stop: int, size: int) -> Iterator[slice]:
    for at in range(start, stop, size):
        yield slice(at, min(at + size, stop))
