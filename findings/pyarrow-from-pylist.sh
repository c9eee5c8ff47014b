#!/usr/bin/env bash
# pyarrow 26.0.1 takes the columns of a table from its first row alone.
#
# `pyarrow.Table.from_pylist(rows)` without a schema makes columns of the keys of the first row. What later
# rows hold under other keys is not in the table, and nothing says so: rows written to Parquet this way have
# lost it. The types of a column come from all rows.
#
# Versions: pyarrow 26.0.1.
# Seen: of [{"a": 1}, {"a": 2, "b": 3}] the column "a"; with the rows turned around "a" and "b".
# Exits with 1 where this has changed.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet pyarrow==26.0.1
"$place/venv/bin/python" - "$place" <<'PYTHON'
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet

rows = [{"a": 1}, {"a": 2, "b": 3}]
file = Path(sys.argv[1]) / "rows.parquet"
pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
read = pyarrow.parquet.read_table(file).to_pylist()
turned = pyarrow.Table.from_pylist(rows[::-1]).column_names
print(f"read back: {read}; columns with the rows turned around: {turned}")
sys.exit(0 if read == [{"a": 1}, {"a": 2}] and sorted(turned) == ["a", "b"] else 1)
PYTHON
