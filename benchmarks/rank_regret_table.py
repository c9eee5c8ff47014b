"""The tables of rank_regret.py: what each way of choosing a rank costs, in loss and in runs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean, median, variance

import bench

FIXED = (8, 16, 32)


HEAD = (
    "task",
    "candidate",
    "rank",
    "regret of its adapter",
    "regret of its rank, nats per token",
    "over seed noise",
    "cost (runs)",
)


@dataclass(frozen=True)
class Row:
    """A candidate on a task, beside the grid's best point there.

    `adapter` is the test loss of what it ended with, None where that is no single adapter; `of_rank`
    the mean of the grid at its rank and rate, None where the grid has none.
    """

    task: str
    who: str
    rank: int
    adapter: float | None
    of_rank: float | None
    best: float
    noise: float
    cost: float
    seed: int = 0

    def cells(self) -> list[str]:
        of_rank = "" if self.of_rank is None else self._said(self.of_rank)
        return [
            *(self.task, self.who, str(self.rank)),
            "" if self.adapter is None else self._said(self.adapter),
            *(of_rank, self._over(self.of_rank)),
            f"{self.cost:.2f}",
        ]

    def _over(self, loss: float | None) -> str:
        return "" if loss is None or not self.noise else f"{(loss - self.best) / self.noise:.1f}"

    def _said(self, loss: float) -> str:
        return f"{loss - self.best:+.4f} ({(loss - self.best) / self.best:+.1%})"


def tables(lines: Sequence[bench.Line]) -> str:
    """Every candidate on every task, over all tasks and over seeds, and ranks by layer."""
    every = rows(lines)
    found = [row for row in every if row.seed == 0]
    each = bench.table(HEAD, (row.cells() for row in found))
    return "\n\n".join(
        text for text in (summary(found), each, by_seed(every), by_layer(lines)) if text
    )


def rows(lines: Sequence[bench.Line]) -> list[Row]:
    """Of the tasks whose grid is there.

    Of the grid's points, the best is the one with the lowest mean test loss; being the lowest of
    twelve noisy means, it is somewhat lower than any choice could count on, the grid's own included.
    """
    found: list[Row] = []
    for task in dict.fromkeys(line["task"] for line in lines):
        own = [line for line in lines if line["task"] == task]
        points = grid_points(own)
        if not points:
            continue
        means = {point: fmean(losses) for point, losses in points.items()}
        make = partial(Row, task, best=min(means.values()), noise=seed_noise(points))
        for line in (line for line in own if line["kind"] == "choice"):
            of_rank = means.get((line["rank"], line["rate"]))  # energy may ask for a rank between
            made = make(line["who"], line["rank"], line["test_loss"], of_rank, cost=line["cost"])
            found.append(replace(made, seed=line.get("seed", 0)))
        probe = next(line for line in own if "cost_by_phase" in line)
        for rank in (r for r in FIXED if (r, probe["rate"]) in means):
            cost = 1 + probe["cost_by_phase"]["probe"]
            found.append(
                make(f"always r={rank}", rank, None, means[rank, probe["rate"]], cost=cost)
            )
        rank, rate = picked_by_grid(own)
        runs = sum(map(len, points.values()))
        found.append(make("the grid, by held-out rows", rank, None, means[rank, rate], cost=runs))
    return found


def summary(found: Sequence[Row]) -> str:
    """Each candidate over all tasks: what it ended with, and its choice of a rank."""
    made = []
    for who in dict.fromkeys(row.who for row in found):
        own = [row for row in found if row.who == who]
        ranks = ", ".join(str(row.rank) for row in own)
        costs = f"{median(row.cost for row in own):.2f} ({max(row.cost for row in own):.2f})"
        adapters = _over_tasks([(row, row.adapter) for row in own])
        chosen = _over_tasks([(row, row.of_rank) for row in own])
        made.append([who, ranks, *adapters, *chosen, costs])
    head = ["candidate", "its ranks", "adapter: regret at most the seed noise", "largest"]
    head += ["rank: regret at most the seed noise", "largest", "cost in runs, median (largest)"]
    return bench.table(head, made) if made else ""


def by_seed(found: Sequence[Row]) -> str:
    """A candidate that was searched with several seeds: what it came to with each."""
    made = []
    for who, task in dict.fromkeys((row.who, row.task) for row in found if row.seed):
        own = sorted(
            (row for row in found if (row.who, row.task) == (who, task)), key=lambda row: row.seed
        )
        adapters, chosen = (
            [(row, row.adapter) for row in own],
            [(row, row.of_rank) for row in own],
        )
        made.append(
            [
                *(who, task),
                ", ".join(str(row.rank) for row in own),
                *(_each(adapters), _over_tasks(adapters)[0], _each(chosen), _over_tasks(chosen)[0]),
                ", ".join(f"{row.cost:.2f}" for row in own),
            ]
        )
    head = ["candidate", "task", "rank by seed", "regret of its adapter", "at most the seed noise"]
    head += ["regret of its rank", "at most the seed noise", "cost (runs)"]
    return bench.table(head, made) if made else ""


def _each(losses: Sequence[tuple[Row, float | None]]) -> str:
    return ", ".join(
        "–" if loss is None else f"{(loss - row.best) / row.best:+.1%}" for row, loss in losses
    )


def _over_tasks(losses: Sequence[tuple[Row, float | None]]) -> tuple[str, str]:
    known = [(row, loss - row.best) for row, loss in losses if loss is not None]
    if not known:
        return "", ""
    within = sum(regret <= row.noise for row, regret in known)
    worst = max(regret / row.best for row, regret in known)
    return f"{within} of {len(known)}", f"{worst:+.1%}"


def picked_by_grid(lines: Sequence[bench.Line]) -> tuple[int, float]:
    """Rank and rate with the lowest held-out loss over the grid's seeds."""
    found: dict[tuple[int, float], list[float]] = {}
    for line in lines:
        if line["kind"] == "grid":
            found.setdefault((line["rank"], line["rate"]), []).append(line["held_out_loss"])
    return min(found, key=lambda point: fmean(found[point]))


def grid_points(lines: Sequence[bench.Line]) -> dict[tuple[int, float], list[float]]:
    """Test losses of the grid by rank and rate."""
    found: dict[tuple[int, float], list[float]] = {}
    for line in lines:
        if line["kind"] == "grid":
            found.setdefault((line["rank"], line["rate"]), []).append(line["test_loss"])
    return found


def seed_noise(points: dict[tuple[int, float], list[float]]) -> float:
    """Standard deviation of a point over its seeds, pooled."""
    spreads = [variance(losses) for losses in points.values() if len(losses) > 1]
    return fmean(spreads) ** 0.5 if spreads else 0.0


def by_layer(lines: Sequence[bench.Line]) -> str:
    """Ranks by layer beside the uniform rank of as many parameters, means over the seeds."""
    rows = []
    for task in dict.fromkeys(line["task"] for line in lines if line["kind"] == "layers"):
        own = [line for line in lines if line["task"] == task]
        layered = [line for line in own if line["kind"] == "layers"]
        rank, rate = layered[0]["rank"], layered[0]["rate"]
        uniform = grid_points(own).get((rank, rate))
        ours = fmean(line["test_loss"] for line in layered)
        if uniform:
            theirs = fmean(uniform)
            rows.append([task, f"{theirs:.4f}", f"{ours:.4f}", f"{ours - theirs:+.4f}"])
    head = ["task", "uniform", "by layer", "difference (nats per token)"]
    return bench.table(head, rows) if rows else ""
