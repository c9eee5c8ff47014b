"""`lorakit merge --quantize` and `lorakit train --merge-aware` on the command line."""

import json


def test_the_share_is_printed_and_recorded(train, lorakit, tmp_path):
    run = tmp_path / "run"
    made = train("--max-steps", 3, "--samples", 0, "--merge-aware", "nf4", out=run)
    assert made.code == 0, made.err
    assert "merge-aware nf4" in made.out + made.err
    out = tmp_path / "merged"
    done = lorakit("merge", "--adapter", run / "adapter", "--quantize", "nf4", "--out", out)
    assert done.code == 0, done.err
    assert "of the update," in " ".join(done.out.split())
    record = json.loads((out / "certificate.json").read_text())
    assert set(record["weights"]["update_survived"]) == {"share", "cosine"}
    again = lorakit(
        *("merge", "--model", out, "--force", "--adapter", run / "adapter"),
        *("--quantize", "base", "--out", tmp_path / "twice"),
    )
    assert again.code == 0, again.err


def test_what_is_not_written_is_one_error(train, lorakit, tmp_path):
    run = tmp_path / "run"
    assert train("--max-steps", 1, "--samples", 0, out=run).code == 0
    asked = ("merge", "--adapter", run / "adapter", "--out", tmp_path / "merged")
    for flags, said in (
        (("--quantize", "int4"), "as lorakit's int4 does"),
        (("--quantize", "nf4", "--dtype", "bfloat16"), "leave one of them out"),
        (("--full-base", run), "--full-base is for a base that is quantized"),
    ):
        done = lorakit(*asked, *flags)
        assert done.code == 2
        assert said in " ".join(done.err.split())
        assert not (tmp_path / "merged").exists()
    none = train("--merge-aware", "nf4", "--dropout", 0.1, out=tmp_path / "other")
    assert none.code == 2
    assert "set dropout to 0" in " ".join(none.err.split())
    assert not (tmp_path / "other").exists()
