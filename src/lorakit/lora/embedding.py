"""A pair beside an embedding: a column of A for each token."""

from functools import cached_property

import torch.nn.functional as F
from torch import Tensor, nn

from lorakit.lora.kinds import factor_of
from lorakit.lora.layers import LoraLayer


class LoraEmbedding(LoraLayer):
    """y[t] = c · (E[id_t] + s · B A[:, id_t]) over an embedding; A: (rank, vocabulary), B: (dim, rank).

    Dropout does not apply: the input is an index. c is 1 but for embeddings that scale what they look
    up, as Gemma's do.
    """

    kind = "embedding"
    base: nn.Embedding

    @property
    def embedding_dim(self) -> int:
        """Width of y."""
        return self.geometry.out_features

    @property
    def num_embeddings(self) -> int:
        """Size of the vocabulary."""
        return self.geometry.in_features

    def forward(self, ids: Tensor) -> Tensor:
        """(…) ids -> (…, dim)."""
        if not self.by_kernels and not self.by_factor:
            return self.through_weight(ids)
        y = self.base(ids)
        y = y + self.low_rank(ids).to(y.dtype)
        return self.scaled(y, y) if self.by_factor else y

    def low_rank(self, ids: Tensor) -> Tensor:
        """c · s · B A[:, id]: (…, dim), in the dtype of A and B."""
        h = F.embedding(ids, self.A.t(), padding_idx=self.base.padding_idx)
        return (h @ self.B.t()).mul(self.scale * self.lookup_scale)

    @cached_property
    def lookup_scale(self) -> float:
        """c."""
        return factor_of(self.base) or 1.0
