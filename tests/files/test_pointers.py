"""Files that stand in the place of others are known by their first bytes; ordinary ones are not."""

import pytest

from lorakit.files.pointers import pointer_in, pointer_problem

LFS = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    b"size 269060552\n"
)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (LFS, ("Git LFS pointer", "269.1 MB", "git lfs pull", "'x.bin'")),
        (LFS.replace(b"\n", b"\r\n"), ("Git LFS pointer", "269.1 MB")),
        (LFS.replace(b"git-lfs", b"hawser"), ("Git LFS pointer",)),
        (b"/annex/objects/SHA256E-s31390--f50d7.jsonl\n", ("git-annex", "git annex get")),
        (b"<!DOCTYPE html>\n<html lang='en'>", ("web page", "/resolve/")),
        (b"\xef\xbb\xbf\n  <HTML><body>", ("web page",)),
        (b"Entry not found", ("'Entry not found'", "address")),
        (b"404: Not Found", ("'404: Not Found'",)),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", ("XML",)),
    ],
)
def test_what_stands_in_the_place_of_a_file(tmp_path, content, says):
    path = tmp_path / "x.bin"
    path.write_bytes(content)
    said = pointer_problem(path)
    assert said is not None
    assert all(part.strip("'") in said for part in says), said


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"text": "version https://git-lfs.github.com/spec/v1"}\n',
        b"text\nEntry not found\nmore\n",
        b"<p>a row of text that is marked up</p>\n",
        b"\x80\x00\x00\x00\x00\x00\x00\x00{}",
        b"PK\x03\x04",
    ],
)
def test_ordinary_content_is_no_pointer(tmp_path, content):
    path = tmp_path / "x"
    path.write_bytes(content)
    assert pointer_problem(path) is None
    assert pointer_in(content) is None


def test_links_to_files_that_are_not_there(tmp_path):
    (tmp_path / "a.parquet").symlink_to(".git/annex/objects/XX/YY/KEY/KEY")
    (tmp_path / "b.parquet").symlink_to("../../blobs/0123")
    assert "git annex get a.parquet" in pointer_problem(tmp_path / "a.parquet")
    assert "../../blobs/0123, which is not there" in pointer_problem(tmp_path / "b.parquet")
    assert pointer_problem(tmp_path / "missing") is None
    assert pointer_problem(tmp_path) is None
