"""A file with a text and something that looks like its answer is refused until a reading is named."""

import csv
import json

import pytest

from lorakit.data import DataSpec, load_data, load_rows, resolve_template
from lorakit.data.given import as_source
from lorakit.errors import DataError

TEXTS = [f"where is parcel number {n}?" for n in range(8)]
CLASSES = ["track", "return", "track", "refund"] * 2


def write(folder, columns, name="rows.csv"):
    """Columns by name, as a file of the kind that its name says."""
    rows = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    file = folder / name
    if name.endswith(".jsonl"):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif name.endswith(".parquet"):
        pytest.importorskip("pyarrow.parquet").write_table(
            pytest.importorskip("pyarrow").Table.from_pylist(rows), file
        )
    else:
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(
                stream, list(columns), delimiter="\t" if ".tsv" in name else ","
            )
            writer.writeheader()
            writer.writerows(rows)
    return str(file)


def load(source, tokenizer, **options):
    return load_data(DataSpec(data=(source,), eval_share=0, **options), tokenizer)


def refused(source, tokenizer, **options):
    with pytest.raises(DataError) as caught:
        load(source, tokenizer, **options)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_text_and_label_stop_with_both_readings(tmp_path, chatml, kind):
    file = write(tmp_path, {"text": TEXTS, "label": CLASSES}, f"rows.{kind}")
    said = refused(file, chatml)
    assert said.startswith(file)
    assert "'where is parcel number 0?' -> 'track'" in said
    assert "--prompt '{text}' --completion '{label}'" in said
    assert "--text '{text}'" in said


def test_rows_in_memory_too(chatml):
    rows = [{"text": t, "intent": c} for t, c in zip(TEXTS, CLASSES, strict=True)]
    assert "--completion '{intent}'" in refused(as_source(rows), chatml)


@pytest.mark.parametrize(
    "name", ["intent", "Category", "class", "sentiment", "target", "tag", "intent_name", "topicId"]
)
def test_the_name_alone_is_enough(tmp_path, chatml, name):
    values = [f"a long and different answer number {n}" for n in range(8)]
    file = write(tmp_path, {"id": range(8), "text": TEXTS, name: values})
    assert f"--completion '{{{name}}}'" in refused(file, chatml)


@pytest.mark.parametrize("name", ["kind", "queue", "score", "is_duplicate"])
def test_few_short_values_of_an_only_other_column(tmp_path, chatml, name):
    file = write(tmp_path, {"id": range(8), "text": TEXTS, name: CLASSES})
    assert f"--completion '{{{name}}}'" in refused(file, chatml)


@pytest.mark.parametrize("name", ["fr", "plain_english", "sequel", "headline"])
def test_texts_of_an_only_other_column(tmp_path, chatml, name):
    """A text of its own for each text: a translation, a continuation, a line above it."""
    values = [f"où est le colis numéro {n}, et qui l'a envoyé au début du mois ?" for n in range(8)]
    file = write(tmp_path, {"id": range(8), "text": TEXTS, name: values})
    assert f"--completion '{{{name}}}'" in refused(file, chatml)


def test_the_first_of_several_columns_of_classes(tmp_path, chatml):
    columns = {"text": TEXTS, "queue": CLASSES, "team": ["north", "south"] * 4}
    assert "--completion '{queue}'" in refused(write(tmp_path, columns), chatml)
    figures = {"text": TEXTS, "weight": ["1.5", "2.5"] * 4, "team": ["north", "south"] * 4}
    assert "--completion '{team}'" in refused(write(tmp_path, figures), chatml)


@pytest.mark.parametrize(
    "columns",
    [
        {"id": range(8)},
        {"wordcount": [str(17 + n) for n in range(8)]},
        {"blob": [f"9f86d081884c7d65{n}" for n in range(8)]},
        {"weight": ["1.5", "2.5"] * 4, "rank": ["3", "4"] * 4},
        {"source": ["web", "book"] * 4, "lang": ["en", "de"] * 4},
        {"url": [f"https://a.org/{n % 2}" for n in range(8)], "date": ["2024-01-01"] * 8},
        {"page_no": [1, 2] * 4, "fileName": ["a.pdf", "b.pdf"] * 4},
        {"seen": ["2024-01-01", "2024-01-02"] * 4},
        {"notes": [f"note {n}" for n in range(8)]},
        {"label": [""] * 8},
        {"score": [1, 2] * 4, "int_score": [3, 4] * 4},
    ],
    ids=lambda columns: "+".join(columns),
)
def test_text_with_what_is_about_it_trains_as_text(tmp_path, chatml, columns):
    found = load(write(tmp_path, {"text": TEXTS, **columns}), chatml)
    assert found.shape.kind == "text"
    assert len(found.train) == 8


def test_each_line_that_is_printed_works(tmp_path, chatml):
    file = write(tmp_path, {"text": TEXTS, "label": CLASSES})
    asked = load(file, chatml, prompt="{text}", completion="{label}")
    assert chatml.decode(asked.train[0].ids[asked.train[0].weight > 0]) == "track<|im_end|>"
    whole = load(file, chatml, text="{text}")
    assert whole.template.kind == "raw"
    assert chatml.decode(whole.train[0].ids) == TEXTS[0] + "<|im_end|>"
    both = load(file, chatml, text="{text} [{label}]")
    assert chatml.decode(both.train[0].ids) == TEXTS[0] + " [track]<|im_end|>"
    assert "rows are text, mapped: '{text} [{label}]'" in both.notes[0].lower()


def test_rows_to_measure_on_and_a_second_file_are_looked_at(tmp_path, chatml):
    plain = write(tmp_path, {"text": TEXTS}, "plain.csv")
    labelled = write(tmp_path, {"text": TEXTS, "label": CLASSES}, "labelled.csv")
    spec = DataSpec(data=(plain, labelled))
    with pytest.raises(DataError, match=r"labelled\.csv:2.*two ways"):
        load_data(spec, chatml)
    template = resolve_template(DataSpec(template="raw"), chatml)
    with pytest.raises(DataError, match="two ways"):
        load_rows((labelled,), DataSpec(), chatml, template)
    with pytest.raises(DataError, match="two ways"):
        load_data(DataSpec(data=(plain,), eval_data=(labelled,)), chatml)


def test_the_row_that_is_shown_has_an_answer(tmp_path, chatml):
    file = write(tmp_path, {"text": TEXTS, "label": ["", *CLASSES[1:]]})
    assert "'where is parcel number 1?' -> 'return'" in refused(file, chatml)


def test_text_is_not_given_beside_a_prompt():
    from lorakit.errors import ConfigError

    with pytest.raises(ConfigError, match="text is given beside prompt or completion"):
        DataSpec(text="{a}", prompt="{a}", completion="{b}")
