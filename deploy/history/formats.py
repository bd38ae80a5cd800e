"""Rows of a history as a table for people, CSV, JSON lines or Parquet."""

import csv
import importlib.util
import io
import json
import sys
from pathlib import Path

from peoplecounter.common.errors import NO_INPUT, AppError

HIDDEN = ("kind", "name", "end", "observed_s", "complete_s", "seconds")  # from people: `observed` says it
FORMATS = ("table", "csv", "json", "parquet")


def write(rows: list[dict], form: str, out: Path | None) -> None:
    """Writes rows to a file, or to the terminal. Raises AppError."""
    if form not in FORMATS:
        raise AppError(f"Unknown format {form!r}: use one of {', '.join(FORMATS)}.")
    if form == "parquet":
        return _write_parquet(rows, out)
    text = {"table": _table, "csv": csv_text, "json": _json}[form](rows)
    if out is None:
        sys.stdout.write(text)
        return None
    try:
        out.write_text(text)
    except OSError as error:
        raise AppError(f"{out} cannot be written: {error.strerror}.", NO_INPUT) from None
    return None


def _table(rows: list[dict]) -> str:
    """One table for each kind, with the columns that say something; what is unknown is empty."""
    kinds = dict.fromkeys(row.get("kind") for row in rows) if rows and "observed_s" in rows[0] else {None: None}
    tables = [_of_kind([row for row in rows if kind is None or row["kind"] == kind]) for kind in kinds]
    return "\n".join(tables)


def _of_kind(rows: list[dict]) -> str:
    from peoplecounter.deploy.cli.display import aligned

    if rows and "observed_s" in rows[0]:
        rows = [{**row, row["kind"]: row["name"], "observed": _share(row)} for row in rows]
        order = ("start", rows[0]["kind"], *(name for name in rows[0] if name not in HIDDEN))
        rows = [{name: row[name] for name in dict.fromkeys(order)} for row in rows]
    names = [name for name in (rows[0] if rows else ()) if any(row[name] is not None for row in rows)]
    if not names:
        return "nothing\n"
    lines = [tuple(names), *(tuple("" if row[name] is None else _text(row[name]) for name in names) for row in rows)]
    return "\n".join(aligned(lines)) + "\n"


def _share(row: dict) -> str:
    return f"{row['observed_s'] / row['seconds']:.1%}"


def _text(value: object) -> str:
    return f"{value:.10g}" if isinstance(value, float) and value < 1e6 else str(value)


def csv_text(rows: list[dict]) -> str:
    """The rows as CSV; what is unknown is empty."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _in_csv(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _in_csv(value: object) -> object:
    return str(value).lower() if isinstance(value, bool) else value


def _json(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _write_parquet(rows: list[dict], out: Path | None) -> None:
    if out is None:
        raise AppError("Parquet is not for a terminal: use --out FILE.")
    if not importlib.util.find_spec("pyarrow"):
        raise AppError("pyarrow is not installed: pip install pyarrow, or use --format csv.")
    import pyarrow
    import pyarrow.parquet

    try:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    except OSError as error:
        raise AppError(f"{out} cannot be written: {error}.", NO_INPUT) from None
