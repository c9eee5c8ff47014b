"""A pair beside a convolution: A is one to `rank` channels, B one of kernel 1."""

import torch.nn.functional as F
from torch import Tensor, nn

from lorakit.errors import TargetError
from lorakit.lora.layers import LoraLayer


class LoraConv(LoraLayer):
    """y = conv(x; W) + s · conv1(conv(x; A); B), conv1 having kernel 1 and the base's groups.

    A sees every input channel even where the base is grouped, as in peft's format; such a pair
    has no equal in the base's layout and so cannot be merged.
    """

    kind = "conv"
    base: nn.Conv1d | nn.Conv2d | nn.Conv3d

    def delta(self) -> Tensor:
        """ΔW: (out_channels, in_channels, *kernel).

        Raises:
            TargetError: the base is grouped.
        """
        if self.base.groups > 1:
            raise TargetError(
                f"a convolution with groups={self.base.groups} cannot take s·B·A: A mixes all "
                "input channels and the base's weight has no place for that; keep it unmerged"
            )
        return super().delta()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, *size) -> (N, out_channels, *size')."""
        if not self.by_kernels and not self.by_factor:
            return self.through_weight(x)
        base = self.base
        conv = (F.conv1d, F.conv2d, F.conv3d)[base.weight.dim() - 3]
        kept = F.dropout(x, self.dropout, training=self.training)
        h = conv(kept, self.A.to(x.dtype), None, base.stride, base.padding, base.dilation)
        low = self.scale * conv(h, self.B.to(x.dtype), groups=base.groups)
        y = base(x)
        if not self.by_factor:
            return y + low
        dropping = self.training and self.dropout > 0.0
        inner = base(kept) if dropping else y
        axis = -(base.weight.dim() - 1)
        if base.bias is not None:
            inner = inner - base.bias.view(-1, *[1] * (-1 - axis))
        return self.scaled(y + low, inner + low, axis)
