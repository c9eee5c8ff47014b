"""The ranks that vLLM lays its buffers out for."""

# What --max-lora-rank takes (MaxLoRARanks in vllm/config/lora.py), and its default.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
DEFAULT = 16


def next_rank(rank: int) -> int | None:
    """The lowest of them that holds this rank; None above the highest.

    >>> next_rank(6), next_rank(257), next_rank(513)
    (8, 320, None)
    """
    return next((known for known in RANKS if known >= rank), None)
