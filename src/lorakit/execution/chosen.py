"""How likely the tokens are that transformers chooses while it generates."""

import torch
from torch import Tensor


class ChosenLogProbs:
    """Log-probabilities of chosen tokens, as a processor of logits that changes nothing.

    transformers can return the logits of all steps, which for a large vocabulary and a long answer
    is more than the model; here those of one step are held.

    Args:
        prompt: tokens of the prompts, padding included.
    """

    def __init__(self, prompt: int) -> None:
        self._prompt, self._chosen = prompt, list[Tensor]()
        self._last_BV: Tensor | None = None

    def __call__(self, ids_BT: Tensor, scores_BV: Tensor) -> Tensor:
        """Take what the step before led to, and hold this step's."""
        if ids_BT.shape[1] > self._prompt:
            self._take(ids_BT[:, -1])
        self._last_BV = torch.log_softmax(scores_BV.float(), dim=-1)
        return scores_BV

    def _take(self, ids_B: Tensor) -> None:
        assert self._last_BV is not None
        self._chosen.append(self._last_BV.gather(1, ids_B[:, None])[:, 0])

    def all(self, new_BN: Tensor) -> list[list[float]]:
        """One number for each new token of each row."""
        self._take(new_BN[:, -1])
        logs: list[list[float]] = torch.stack(self._chosen, 1).tolist()
        return logs
