"""The documents' measured figures against the result files, and the tables against worked examples."""

import noise
import pytest
import rank_regret_table
import tables
import trials


@pytest.mark.parametrize("page", tables.pages(), ids=lambda page: page.name)
def test_a_page_says_what_the_result_files_say(page):
    text = page.read_text(encoding="utf-8")
    assert tables.filled(text) == text, "run: python benchmarks/tables.py --write"


def test_readme_has_the_short_tables_and_measured_md_the_whole_ones():
    def names(page):
        text = (tables.ROOT / page).read_text(encoding="utf-8")
        return {place[2] for place in tables.PLACE.finditer(text)}

    assert names("README.md") == {name for name in tables.SECTIONS if name.startswith("short_")}
    assert {"speed", "startup", "compare"} <= names("docs/measured.md")


def test_every_place_names_a_section():
    for page in tables.pages():
        names = [place[2] for place in tables.PLACE.finditer(page.read_text(encoding="utf-8"))]
        assert set(names) <= set(tables.SECTIONS)


def run(contender, seconds, *, seed=0, date="1", loss=2.0, memory=1e9):
    """A run of 100 tokens a step, in a model of 1 FLOP a token on a machine of 200 FLOP/s."""
    return {
        "date": date,
        "rows": "e2e",
        "contender": contender,
        "seed": seed,
        "dtype": "float32",
        "tokens": [100] * len(seconds),
        "seconds": seconds,
        "mean_length": 60.0,
        "flops_per_token": 1.0,
        "matmul_flops": 200.0,
        "held_out_loss": loss,
        "peak_memory_bytes": memory,
    }


def cells(table):
    return [[c.strip() for c in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_speed_leaves_out_the_first_step_and_is_the_median_run():
    # 100 tokens/s, 50 and 25: the first step's 9 s count for none of them.
    runs = [run("lorakit", [9.0, s, s]) for s in (1.0, 2.0, 4.0)]
    assert tables.speed(runs) == pytest.approx(50.0)
    # 200 tokens in 4 s, not the mean of 100/s and 33/s.
    assert tables.speed([run("lorakit", [9.0, 1.0, 3.0])]) == pytest.approx(50.0)


def test_goals_hold_lorakit_against_the_fastest_trl():
    lines = [
        run("lorakit", [9.0, 1.0], loss=2.0, memory=1e9),
        run("peft", [9.0, 2.0], loss=2.01, memory=4e9),
        run("trl", [9.0, 4.0], loss=2.0),
        run("trl-grouped", [9.0, 2.5], loss=5.0),
    ]
    (row,) = cells(tables.goals(lines))
    # TRL's own grouping takes other steps, so that its loss is not held against the others'.
    assert row == [
        "e2e (60 tokens)",
        "at once",
        "2.00",
        "2.50 (trl-grouped)",
        "0.50",
        "0.25",
        "0.50%",
    ]


def test_like_is_held_against_like_where_a_step_is_split():
    lines = [
        run("lorakit", [9.0, 1.0]),
        run("peft", [9.0, 4.0]),
        run("lorakit-split", [9.0, 0.5], memory=1e9),
        run("peft-split", [9.0, 1.0], memory=2e9),
    ]
    at_once, in_parts = cells(tables.goals(lines))
    assert at_once[2:4] == ["4.00", "not measured"]
    assert in_parts[1:3] == ["in parts", "2.00"]
    assert in_parts[5] == "0.50"


def test_the_command_given_last_counts_and_ratios_stay_within_a_command():
    lines = [
        run("lorakit", [9.0, 4.0], date="1"),
        run("peft-bf16", [9.0, 40.0], date="1"),
        run("lorakit", [9.0, 1.0], date="2"),
        run("peft", [9.0, 2.0], date="2"),
    ]
    ratios = {row[1]: row[4] for row in cells(tables.contenders(lines))}
    assert ratios == {"lorakit": "1.00", "peft-bf16": "10.00", "peft": "2.00"}


def test_full_fine_tuning_takes_memory_and_time_by_ratio():
    lines = [run("lorakit", [9.0, 1.0], memory=1e9), run("full", [9.0, 1.6], memory=5e9)]
    (row,) = cells(tables.full(lines))
    assert row == ["e2e (60 tokens)", "a plain loop", "0.20", "0.62"]


def point(sweep, value, seconds, **said):
    return run("", [9.0, seconds]) | {
        "sweep": sweep,
        "value": value,
        "all_seconds": 9.0 + seconds,
        "rank": 8,
        "length": 60,
        "batch_size": 2,
        "forecast": {"matmul_flops": 200.0, **said},
    }


def test_ranks_are_held_against_what_the_formula_says_from_rank_8():
    lines = [
        point("rank", 4, 1.0, flops_per_token=0.9),
        point("rank", 8, 1.0, flops_per_token=1.0),
        point("rank", 64, 2.5, flops_per_token=2.0),
    ]
    # 100 tokens/s at rank 8, so 50 where a token takes twice the FLOPs; 40 came.
    assert cells(tables.growth(lines))[2] == ["64", "40", "0.40", "50", "0.80", "1.00 GB"]


def test_a_forecast_stands_beside_what_came():
    measured = point("forecast", 0, 1.0, peak_memory_bytes=1.1e9)
    measured["forecast"]["seconds"] = 8.0
    (row,) = cells(tables.forecast([measured]))
    assert row[3:] == ["1.10 GB", "1.00 GB", "1.10", "8.0 s", "10.0 s", "0.80"]


def test_starting_up_is_the_median_of_the_last_command():
    def start(what, seconds, step, date="2"):
        return {"what": what, "seconds": seconds, "step_seconds": step, "date": date}

    lines = [
        start("lorakit train", 90.0, 9.0, date="1"),
        *(start("lorakit train", s, 1.0) for s in (5.0, 6.0, 9.0)),
        start("lorakit --help", 0.25, None),
    ]
    assert cells(tables.startup(lines)) == [
        ["lorakit train", "6.00 s", "1.00 s"],
        ["lorakit --help", "0.25 s", ""],
    ]


def test_beside_others_every_ratio_is_of_its_own_kind():
    def turn(name, beside, number, speed, date="2"):
        return {
            "contender": name,
            "beside": beside,
            "round": number,
            "date": date,
            "tokens_per_second": speed,
        }

    lines = [
        turn("lorakit", 0, 0, 1.0, date="1"),
        *(turn("lorakit", 0, i, s) for i, s in enumerate((100.0, 110.0, 121.0))),
        *(turn("lorakit", 1, i, s) for i, s in enumerate((44.0, 66.0, 55.0))),
        *(turn("peft", 0, i, 50.0) for i in range(3)),
        *(turn("peft", 1, i, 20.0) for i in range(3)),
    ]
    first, last = cells(tables.busy(lines))
    # Quiet: the geometric mean of 2, 2.2 and 2.42 is 2.2; its logarithms lie .0953 apart, and
    # t(.975, 2) is 4.303: exp(ln 2.2 - 4.303 · .0953 / √3) is 1.736.
    assert first == ["lorakit", "110", "2.20, at least 1.74", "55", "0.50", "2.75"]
    assert last == ["peft", "50", "1.00", "20", "0.40", "1.00"]


def test_trials_that_are_known_stand_beside_those_that_are_tried():
    def ready(how, wall, date="2"):
        return {"trials": how, "seconds": {"train": wall}, "busy": {"train": 0.5}, "date": date}

    lines = [ready("again", 99.0, date="1"), ready("kept", 0.1), ready("kept", 0.3)]
    lines += [ready("again", wall) for wall in (1.0, 5.0, 2.0)]
    assert cells(trials.table(lines)) == [["train", "2.00 s (0.50 s)", "0.20 s (0.50 s)"]]


def test_what_is_answered_at_once_is_the_median_of_the_last_command():
    def took(seconds, date="2"):
        return {"what": "lorakit trian", "seconds": seconds, "processor_seconds": 0.2, "date": date}

    lines = [took(9.0, date="1"), took(0.2), took(0.25), took(0.9)]
    assert cells(tables.quick(lines)) == [["`lorakit trian`", "0.25 s", "0.20 s"]]


def test_machines_do_not_mix_and_the_last_measured_comes_first():
    lines = [
        run("lorakit", [9.0, 1.0], date=date) | {"machine": {"cpu": cpu}}
        for date, cpu in (("1", "old"), ("3", "new"), ("2", "old"))
    ]
    found = tables.machines(lines)
    assert list(found) == ["new", "old"]
    assert [line["date"] for line in found["old"]] == ["1", "2"]


def test_losses_are_held_against_the_run_that_took_turns():
    lines = [
        run("lorakit", [9.0, 1.0], loss=2.0),
        run("peft", [9.0, 2.0], loss=2.02),
        {k: v for k, v in run("lorakit", [9.0, 1.0], date="2").items() if k != "held_out_loss"},
        run("full", [9.0, 3.0], date="2", loss=5.0),
    ]
    (row,) = cells(tables.goals(lines))
    assert row[-1] == "1.00%"


def test_regret_is_of_the_grids_mean_at_the_rank_and_of_the_adapter_itself():
    grid = {(1, 0.1): (2.2, 2.4), (8, 0.1): (2.0, 2.1), (8, 0.2): (3.0, 3.0)}
    lines = [
        {"task": "t", "kind": "grid", "rank": rank, "rate": rate, "test_loss": loss,
         "held_out_loss": 5.0 - rank}
        for (rank, rate), losses in grid.items() for loss in losses
    ]  # fmt: skip
    choice = {"task": "t", "kind": "choice", "rate": 0.1, "cost": 2.0}
    lines += [
        choice | {"who": "bracket", "rank": 1, "test_loss": 2.15, "cost_by_phase": {"probe": 0.25}},
        choice | {"who": "90 % energy, cut", "rank": 3, "test_loss": 2.05},
    ]
    bracket, energy, fixed, whole = rank_regret_table.rows(lines)
    # Seeds: variances .02, .005 and 0, pooled .025/3; best mean 2.05.
    assert bracket.best == pytest.approx(2.05)
    assert bracket.noise == pytest.approx((0.025 / 3) ** 0.5)
    assert bracket.cells()[3:] == ["+0.1000 (+4.9%)", "+0.2500 (+12.2%)", "2.7", "2.00"]
    assert energy.cells()[3:6] == ["+0.0000 (+0.0%)", "", ""]
    assert (fixed.who, fixed.of_rank, fixed.cost) == ("always r=8", pytest.approx(2.05), 1.25)
    # The lowest held-out loss is rank 8's, at both rates: the first of them, six runs in all.
    assert (whole.rank, whole.of_rank, whole.cost) == (8, pytest.approx(2.05), 6)
    ours, theirs = cells(rank_regret_table.summary([bracket, energy]))
    assert ours == ["bracket", "1", "0 of 1", "+4.9%", "0 of 1", "+12.2%", "2.00 (2.00)"]
    assert theirs == ["90 % energy, cut", "3", "1 of 1", "+0.0%", "", "", "2.00 (2.00)"]
    # A search with another seed has a table of its own, and changes no other.
    again = choice | {"who": "bracket", "rank": 8, "rate": 0.2, "test_loss": 2.05, "seed": 1}
    again |= {"cost": 2.5, "cost_by_phase": {"probe": 0.25}}
    found = rank_regret_table.rows([*lines, again])
    (row,) = cells(rank_regret_table.by_seed(found))
    assert row == ["bracket", "t", "1, 8", "+4.9%, +0.0%", "1 of 2", "+12.2%, +46.3%", "0 of 2", "2.00, 2.50"]  # fmt: skip
    assert rank_regret_table.by_seed(rank_regret_table.rows(lines)) == ""
    first = rank_regret_table.tables(lines)
    assert all(part in rank_regret_table.tables([*lines, again]) for part in first.split("\n\n"))


def test_a_word_is_wrong_of_equals_the_wrong_way_round_or_of_what_differs_by_more_than_the_margin():
    def said(mean, word):
        return {"case": "c", "measure": "loss", "mean": mean, "word": word, "margin": 0.1}

    lines = [
        *(said(0.3, "worse"), said(-0.3, "better"), said(0.0, "equal")),
        *(said(0.3, "cannot be told"), said(-0.3, "cannot be told")),
    ]
    # Of equals better and worse are wrong; where theirs is better, better is, and equal beyond the margin.
    assert noise.wrong(lines, 0.0, 0.0, noise.WORDS[:2]) == 2
    assert noise.wrong(lines, 0.0, 0.0, ("equal",)) == 0
    assert noise.wrong(lines, 0.15, 0.2, noise.WORDS[:2]) == 1
    assert noise.wrong(lines, 0.15, 0.2, ("equal",)) == 1
    assert noise.wrong(lines, 0.05, 0.2, ("equal",)) == 0
    assert noise.wrong(lines, -0.1, 0.2, noise.WORDS[:2]) == 2


def test_the_truth_of_identical_arms_is_nothing_and_else_the_mean_of_all():
    assert noise.truth("rank: identical arms", [1.0, 2.0]) == (0.0, 0.0)
    low, high = noise.truth("rank: shuffled labels", [1.0, 3.0])
    # ± 2.5 standard errors, which is 1.
    assert (low, high) == pytest.approx((-0.5, 4.5))
    lines = [
        {
            "case": "rank: 8 rows",
            "measure": "rank 1",
            "mean": m,
            "word": "cannot be told",
            "margin": None,
        }
        for m in (0.1, 0.2)
    ]
    (row,) = cells(noise.table(lines))
    assert row[2] == "2"
    assert row[4:] == ["0", "0", "0", "2", "0", "0"]
