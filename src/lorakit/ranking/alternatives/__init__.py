"""Other ways to search for a rank, which docs/rank.md finds worse than the default or dearer.

Imported only where `--method` names one of them.

heal      the highest rank, cut by SVD, each candidate trained on for a while, then compared.
nested    one run in which the rows of every step are dealt out among the prefixes of the
          highest rank (after DyLoRA, arXiv 2210.07558, and Matryoshka learning, arXiv
          2205.13147), compared at every prefix; the chosen one goes on alone.
halving   plain successive halving over the ranks (arXiv 1502.07943).
"""
