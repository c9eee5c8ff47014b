"""`lorakit check` on generated files of rows: read, or one error and exit code 2."""

import pytest

from broken_row_files import broken_files
from row_files import valid_files

# One of every kind of file that goes another way through the code.
READ = (
    *(
        "plain.jsonl",
        "packed.json.zst",
        "pretty.jsonl",
        "semicolons.csv",
        "index.csv",
        "history.json",
    ),
    *(
        "sharegpt.json",
        "prompt-list.jsonl",
        "preferences.jsonl",
        "wrapped-data.json",
        "by-column.json",
    ),
    *("paragraphs.txt", "json-lines.txt", "by-name", "hub-card", "saved", "columns.parquet"),
)
REFUSED = (
    *("repr-4.jsonl", "twice-2.jsonl", "cut-pretty.json", "lfs.parquet", "page.txt", "utf-16.csv"),
    *(
        "cut2.jsonl.gz",
        "missing-from-3.json",
        "unknown.jsonl",
        "null-content.jsonl",
        "bad-arguments.jsonl",
    ),
    *(
        "no-header.csv",
        "kto-3.jsonl",
        "splits.json",
        "only-test",
        "two-configs",
        "rows.xlsx",
        "pdf.txt",
    ),
)


@pytest.fixture(scope="module")
def cases():
    return {("read", c.name): c for c in valid_files(7)} | {
        ("refused", c.name): c for c in broken_files(7)
    }


@pytest.fixture
def check(lorakit, model_folder, tmp_path, cases):
    def call(kind, name):
        case = cases[kind, name]
        for path, content in case.files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(content)
        options = [part for key, value in case.options.items() for part in (f"--{key}", value)]
        outcome = lorakit(
            "check", "--model", model_folder, "--data", tmp_path / case.source, *options
        )
        assert "Traceback" not in outcome.err
        return case, outcome

    return call


@pytest.mark.parametrize("name", READ)
def test_a_valid_file_is_shown(check, name):
    case, outcome = check("read", name)
    assert outcome.code == 0, outcome.err
    shown = " ".join(outcome.out.split())
    for part in case.says:
        assert part in shown


@pytest.mark.parametrize("name", REFUSED)
def test_a_broken_file_is_refused_with_one_error(check, name):
    case, outcome = check("refused", name)
    assert outcome.code == 2, outcome
    said = " ".join(outcome.err.split())
    assert case.source.split("/")[-1] in said
    for part in case.says:
        assert " ".join(part.split()) in said
