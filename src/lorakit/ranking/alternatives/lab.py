"""A lab that also makes ranks of other ranks, and the door to the searches that use it."""

from collections.abc import Mapping, Sequence

from lorakit.experiments.measuring import RowLosses
from lorakit.ranking.alternatives.searches import halving, heal, nested
from lorakit.ranking.alternatives.trials import CUT, NEST, CutRequest, NestRequest
from lorakit.ranking.bracket import SearchResult
from lorakit.ranking.choose import Judge
from lorakit.ranking.lab import TrialLab, losses_of
from lorakit.ranking.spec import RankSpec
from lorakit.ranking.trials import TRAIN, AdapterRef, Candidate, RankRun


class CuttingTrialLab:
    """Cuts, heals and nests by trials; trains by those of another lab.

    Args:
        lab: the other.

    Attributes:
        adapters: of the ranks that were healed or went on alone.
        cuts: of the ranks that were cut.
    """

    def __init__(self, lab: TrialLab) -> None:
        self._lab = lab
        self.adapters: dict[int, AdapterRef] = {}
        self.cuts: dict[int, AdapterRef] = {}
        self._prefixes: dict[int, AdapterRef] = {}

    @property
    def steps(self) -> int:
        """See `Lab`."""
        return self._lab.steps

    @property
    def spent(self) -> float:
        """See `Lab`."""
        return self._lab.spent

    @property
    def measuring(self) -> float:
        """See `Lab`."""
        return self._lab.measuring

    def train(self, candidates: Sequence[Candidate], until: int) -> Mapping[Candidate, RowLosses]:
        """See `Lab`."""
        return self._lab.train(candidates, until)

    def cut(self, candidate: Candidate, ranks: Sequence[int]) -> Mapping[int, RowLosses]:
        """See `CuttingLab`."""
        lab, rows = self._lab, self._lab.profile.profile.eval_rows
        request = CutRequest(lab.stamp, lab.adapter(candidate), tuple(ranks), rows)
        trial, result = lab.run(CUT, request, f"cuts of rank {candidate.rank}")
        for rank in ranks:
            self.cuts[rank] = AdapterRef(trial, f"rank-{rank}")
            lab.count_evaluation(rank, result.measured_tokens)
        return {rank: result.points[str(rank)] for rank in ranks}

    def heal(
        self, candidate: Candidate, ranks: Sequence[int], steps: int
    ) -> Mapping[int, RowLosses]:
        """See `CuttingLab`."""
        starts = {rank: self.cuts[rank] for rank in ranks}
        return self._train_on(starts, candidate.rate, candidate.seed, steps, "healing")

    def nest(self, ranks: Sequence[int], rate: float, seed: int) -> Mapping[int, RowLosses]:
        """See `CuttingLab`."""
        lab, rows = self._lab, self._lab.profile.profile.eval_rows
        recompute = lab.profile.estimate.recompute
        request = NestRequest(lab.stamp, tuple(ranks), rate, seed, lab.steps, rows, recompute)
        trial, result = lab.run(NEST, request, f"all prefixes of rank {max(ranks)}")
        # Rows are dealt out evenly, and so is what their pairs cost.
        mean = sum(lab.profile.parameters(rank) for rank in ranks) // len(ranks)
        lab.count_training(mean, result.trained_tokens)
        for rank in ranks:
            self._prefixes[rank] = AdapterRef(trial, f"rank-{rank}")
            lab.count_evaluation(rank, result.measured_tokens)
        return {rank: result.points[str(rank)] for rank in ranks}

    def go_on(self, rank: int, rate: float, seed: int, steps: int) -> RowLosses:
        """See `CuttingLab`."""
        starts = {rank: self._prefixes[rank]}
        return self._train_on(starts, rate, seed, steps, "the chosen prefix alone")[rank]

    def _train_on(
        self,
        starts: Mapping[int, AdapterRef],
        rate: float,
        seed: int,
        steps: int,
        label: str,
    ) -> dict[int, RowLosses]:
        """Train adapters for so many steps, by a schedule of their own."""
        lab = self._lab
        runs = [RankRun(rank, rate, seed, {}, starts_with=start) for rank, start in starts.items()]
        rows = lab.profile.profile.eval_rows
        request = lab.train_request(runs, steps, steps, rows=rows)
        named = ", ".join(map(str, starts))
        trial, result = lab.run(TRAIN, request, f"{label}: ranks {named}")
        losses = {}
        for i, (rank, run) in enumerate(zip(starts, result.runs, strict=True)):
            lab.count(rank, run, result)
            losses[rank] = losses_of(run, f"{label}, rank {rank}")
            self.adapters[rank] = AdapterRef(trial, f"run-{i}/adapter")
        return losses


def search(
    lab: TrialLab, spec: RankSpec, judge: Judge, rate: float, seed: int
) -> tuple[SearchResult, AdapterRef]:
    """The search that `spec.method` names, and the adapter that it ended with."""
    if spec.method == "halving":
        result = halving(lab, spec.ranks, rate, seed, judge)
        return result, lab.adapter(Candidate(result.choice.rank, rate, seed))
    cutting, way = CuttingTrialLab(lab), {"heal": heal, "nested": nested}[spec.method]
    result = way(cutting, spec.ranks, rate, seed, judge, heal_share=spec.heal_share)
    return result, cutting.adapters[result.choice.rank]
