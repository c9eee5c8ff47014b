"""Searches for a rank against an exhaustive grid, on five tasks of different appetite.

    python benchmarks/rank_regret.py --data DATA --work WORK --stage search --out benchmarks/results/rank_regret.jsonl
    python benchmarks/rank_regret.py --data DATA --work WORK --stage grid   --out benchmarks/results/rank_regret.jsonl
    python benchmarks/rank_regret.py --write          # the tables in docs/rank.md

    python benchmarks/rank_regret.py --data DATA --work WORK --try --tasks keys    # tiny, nothing kept

SmolLM2-135M, 45 to 60 steps a run (keys: 150): a task takes about three quarters of an hour on two
cores with native bfloat16. `--stage search` trains what the candidates ask for,
`--stage grid` every rank with two learning rates and two seeds; what both need is trained once.
`--tasks snips,keys` takes some of the tasks. Killed at any instant, the same line goes on: finished
trials lie in WORK/TASK/trials, finished measurements in the JSONL file.

Three kinds of rows: those that are trained on, those that choose the rank, and a **test split that
chooses nothing**, on which every adapter named in the table is measured. The regret of an adapter is
its test loss less that of the best point of the grid (mean over the seeds). That of a rank is the
same with the mean of the grid's runs at that rank and rate in the adapter's place, which is what the
choice costs whoever trains at it. The seed noise is the standard deviation of a grid point over its
seeds, pooled.

    snips       a spoken command -> JSON
    e2e         facts about a restaurant -> a sentence
    banking77   a customer's sentence -> one of 77 intents
    gsm8k       an arithmetic problem -> its solution
    keys        250 random keys -> random values through q_proj of two layers: 4.6 kbit for each
                unit of rank at two bits a parameter, and 13.5 kbit to learn. Held out and test are
                halves of the pairs, which are all trained on: what is learnt is learnt by heart.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench
from rank_regret_table import tables
from rank_tasks import TASKS, Task, write_rows

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "rank_regret.jsonl"
PAGE = ROOT / "docs" / "rank.md"
BEGIN, END = "<!-- measured: rank -->", "<!-- end of rank -->"
METHODS = ("bracket", "heal", "nested", "halving")
ENERGY = 0.9
UNIFORM = 8


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="the folder of snips, e2e, banking77, gsm8k")
    parser.add_argument("--work", type=Path, default=Path("runs/rank_regret"))
    parser.add_argument("--tasks", default=",".join(TASKS), help="which, commas between")
    parser.add_argument("--stage", choices=("search", "grid", "all"), default="all")
    parser.add_argument(
        "--methods", default=",".join(METHODS), help="which searches; ranks by layer with all only"
    )
    parser.add_argument(
        "--seeds",
        default="0",
        help="of the searches, commas between; the grid begins with the first",
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--workers", type=int, default=1, help="trials of the grid at once")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="of a training pass")
    parser.add_argument(
        "--together",
        type=int,
        default=0,
        metavar="N",
        help="for a GPU: N runs of the grid on one base at once, and trials that come one by one "
        "in this process",
    )
    parser.add_argument("--try", action="store_true", dest="tries", help="tiny, nothing kept")
    parser.add_argument("--write", action="store_true", help="only the tables in docs/rank.md")
    parser.add_argument("--out", type=Path, help=f"JSONL file to append to, such as {RESULTS.name}")
    given = parser.parse_args()
    if given.write:
        page = PAGE.read_text(encoding="utf-8")
        before, _, rest = page.partition(BEGIN)
        after = rest.partition(END)[2]
        text = tables(bench.read(given.out or RESULTS))
        PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
        return
    chosen = bench.pick(parser, given.tasks, TASKS)
    given.seeds = tuple(int(seed) for seed in given.seeds.split(","))
    given.methods = tuple(bench.pick(parser, given.methods, dict.fromkeys(METHODS)))
    if given.data is None and set(chosen) != {"keys"}:
        parser.error("--data is needed for all tasks but keys")
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch) if given.tries else given.work
        out = Path(scratch) / "lines.jsonl" if given.tries else given.out
        for name, task in chosen.items():
            Bench(name, task, given, work / name, out).run()
        if out is not None and out.exists():
            print(tables(bench.read(out)))


class Bench:
    """One task: its rows, its searches, its grid, and everything measured on the test rows."""

    def __init__(
        self, name: str, task: Task, given: argparse.Namespace, work: Path, out: Path | None
    ) -> None:
        from lorakit.ranking.spec import FORM

        self.name, self.given, self.work, self.out = name, given, work, out
        self.methods = given.methods
        self.tries, self.lines = given.tries, bench.read(out) if out and out.exists() else []
        counts = (24, 12, 12) if self.tries else task.counts
        files = write_rows(name, given.data, work, counts)
        options = task.options | {"model": given.model, "template": "raw", "out": str(work)}
        options |= {"batch_tokens": given.batch_tokens, "seed": given.seeds[0]}
        options |= {"data": (str(files[0]),), "eval_data": (str(files[1]),)}
        if self.tries:
            options |= {"max_steps": 4, "batch_size": 4, "max_rank": 4}
        self.settings = FORM.read(None, options)
        self.test = files[2]
        self.session = bench.session()
        self.waiting: list[tuple[bench.Line, Path]] = []

    def run(self) -> None:
        """What is missing of the asked-for stages."""
        from lorakit.experiments import in_process, processes

        root = self.work / "trials"
        apart = processes(root, workers=self.given.workers, report=self._say)
        here = in_process(root, report=self._say)

        def runner(trials: Sequence[Any]) -> Iterator[Any]:
            return here(trials) if self.given.together and len(trials) == 1 else apart(trials)

        self.root, self.runner = root, runner
        every = [(seed, method) for seed in self.given.seeds for method in self.methods]
        found = {(seed, method): self._search(method, seed) for seed, method in every}
        first = found[every[0]]
        if self.given.stage in ("search", "all"):
            for (seed, method), findings in found.items():
                self._add(self._choice(method, findings) | {"seed": seed}, findings.adapter)
            if set(self.methods) == set(METHODS):
                self._cut_by_energy(first)
                self._by_layer(first)
            self._measure()
        if self.given.stage in ("grid", "all"):
            self._grid(first)
            self._measure()

    def _say(self, event: Any) -> None:
        if event["kind"] == "begin":
            bench.note(f"{self.name}: {event['label']}")

    def _search(self, method: str, seed: int) -> Any:
        from lorakit.ranking.command import profile_rank, search_rank

        spec, config = replace(self.settings.spec, method=method), self.settings.config
        config = replace(config, train=replace(config.train, seed=seed))
        profile = profile_rank(spec, config, self.runner)
        return search_rank(spec, config, self.runner, self.root, profile)

    def _choice(self, method: str, findings: Any) -> bench.Line:
        from lorakit.ranking.wording import sentence

        lab, choice, whole = findings.lab, findings.search.choice, findings.lab.profile.run_flops
        return {
            "kind": "choice",
            "who": method,
            "rank": findings.rank,
            "rate": findings.probed.rate,
            "cost": lab.spent,
            "cost_by_phase": {name: flops / whole for name, flops in lab.flops.items()},
            "chosen_as": choice.kind,
            "confidence": choice.confidence,
            "tolerance": findings.tolerance.share,
            "parameters": lab.profile.parameters(findings.rank),
            "decisions": [sentence(each) for each in findings.search.decisions],
        }

    def _cut_by_energy(self, findings: Any) -> None:
        """The rank that 90 % of the energy asks for, and the adapter that was cut to it."""
        from lorakit.ranking.alternatives.lab import CuttingTrialLab
        from lorakit.ranking.inspect import rank_for_energy
        from lorakit.ranking.pairs import spectra_of
        from lorakit.ranking.trials import Candidate

        lab, profile, top = findings.lab, findings.lab.profile, self.settings.spec.ranks[-1]
        whole = Candidate(top, findings.probed.rate, self.settings.config.train.seed)
        probe = lab.flops.get("probe", 0.0) / profile.run_flops
        lab.train([whole], lab.steps)
        adapter = lab.adapter(whole)
        rank = rank_for_energy(spectra_of(adapter.folder(self.root)), ENERGY)
        cutting = CuttingTrialLab(lab)
        cutting.cut(whole, [rank])
        line = {"kind": "choice", "who": "90 % energy, cut", "rank": rank, "rate": whole.rate}
        self._add(
            line | {"cost": 1 + probe, "parameters": profile.parameters(rank)}, cutting.cuts[rank]
        )

    def _by_layer(self, findings: Any) -> None:
        """Ranks by layer from the highest rank's spectrum, at the parameters of uniform rank 8."""
        from lorakit.adapters.pairs import read_stored
        from lorakit.ranking.checks import allot
        from lorakit.ranking.pairs import spectra_of
        from lorakit.ranking.trials import Candidate

        lab, seed = findings.lab, self.settings.config.train.seed
        rate, ranks = findings.probed.rate, self.settings.spec.ranks
        uniform = UNIFORM if UNIFORM in ranks else ranks[-2]
        top = Candidate(ranks[-1], rate, seed)
        lab.train([top], lab.steps)
        adapter = lab.adapter(top)
        folder = adapter.folder(self.root)
        costs = {p: x.parameters // x.rank for p, x in read_stored(folder).pairs.items()}
        found = allot(spectra_of(folder), costs, uniform * sum(costs.values()))
        for s in (seed, seed + 1):
            layered = Candidate(uniform, rate, s, tuple(sorted(found.items())))
            lab.train([layered], lab.steps)
            line = {"kind": "layers", "who": "by layer", "rank": uniform, "rate": rate, "seed": s}
            self._add(line | {"ranks": found}, lab.adapter(layered))

    def _grid(self, findings: Any) -> None:
        """Every rank, two rates, two seeds; a trial each."""
        from lorakit.ranking.trials import Candidate

        lab, seed = findings.lab, self.settings.config.train.seed
        tried = sorted((x, rate) for rate, x in findings.probed.first.items() if x is not None)
        rates = [findings.probed.rate] + [r for _, r in tried if r != findings.probed.rate]
        runs = [
            Candidate(rank, rate, s)
            for rank in self.settings.spec.ranks
            for rate in rates[:2]
            for s in (seed, seed + 1)
        ]
        held_out = lab.train(runs, lab.steps, concurrent=max(1, self.given.together))
        for run in runs:
            line = {"kind": "grid", "rank": run.rank, "rate": run.rate, "seed": run.seed}
            line |= {"who": "grid", "best_of_probe": run.rate == findings.probed.rate}
            line |= {"held_out_loss": held_out[run].loss}
            self._add(line, lab.adapter(run))

    def _add(self, line: bench.Line, adapter: Any) -> None:
        """Let an adapter be measured on the test rows, unless its line is there."""
        key = {"task": self.name, "trial": adapter.trial, "adapter": adapter.adapter}
        key |= {name: line[name] for name in ("kind", "who", "rank")}
        if not any(all(old.get(k) == v for k, v in key.items()) for old in self.lines):
            folder = adapter.folder(self.root)
            self.waiting.append((self.session | key | line, folder))

    def _measure(self) -> None:
        """Measure what waits, in one process, and keep its lines."""
        if not self.waiting:
            return
        bench.note(f"{self.name}: {len(self.waiting)} adapters on the test rows")
        asked = {
            "options": {k: v for k, v in self.settings.config.to_flat().items() if k != "resume"},
            "adapters": [str(folder) for _, folder in self.waiting],
            "test": str(self.test),
        }
        found = bench.measure(asked)
        lines = [
            line | {"test_loss": loss, "test_rows": found["test_rows"], "machine": found["machine"]}
            for (line, _), loss in zip(self.waiting, found["test_losses"], strict=True)
        ]
        bench.append(self.out, lines)
        self.lines += lines
        self.waiting = []


def work(given: bench.Line) -> bench.Line:
    """The loss of each adapter on the test rows, in a process of its own."""
    from lorakit.adapters import load_adapter
    from lorakit.config import load_config
    from lorakit.data import load_rows
    from lorakit.evaluation.likelihood import per_token, row_losses
    from lorakit.lora import detach
    from lorakit.run.session import open_base

    options = {k: v for k, v in given["options"].items() if v is not None}
    config = load_config(None, options)
    session = open_base(config.model, config.data)
    table, _, _ = load_rows([given["test"]], config.data, session.tokenizer, session.template)
    tokens = 1024 if session.model.device.type == "cpu" else config.train.batch_tokens
    losses: dict[str, float] = {}
    for adapter in given["adapters"]:
        if adapter not in losses:
            load_adapter(session.model, adapter)
            losses[adapter] = per_token(*row_losses(session.model, table, tokens))
            detach(session.model)
    return {
        "test_losses": [losses[a] for a in given["adapters"]],
        "test_rows": len(table),
    } | bench.surroundings(session.model.device)


if __name__ == "__main__":
    bench.run(main, work)
