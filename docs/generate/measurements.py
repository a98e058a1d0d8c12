"""Writes tables of the measurements in ``benchmarks/results``."""

import json
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def benchmarks() -> str:
    """Returns a table for each JSON file of results, or a sentence if there are none."""
    files = sorted(RESULTS.glob("*.json"))
    if not files:
        return "`benchmarks/results` holds no measurements of this version yet."
    return "\n\n".join(f"### {path.stem}\n\n{_table(json.loads(path.read_text()))}" for path in files)


def runtimes() -> str:
    """Returns the results of ``benchmarks/runtimes.py`` as tables, one for each model."""
    parts = []
    for path in sorted(RESULTS.glob("runtimes_*.json"), reverse=True):
        found = json.loads(path.read_text())
        isa = ", ".join(f"{'with' if found[name] else 'without'} {name.upper()}" for name in ("avx512", "amx"))
        machine = f"{found['processor']} (family and model {found['family_and_model']}; {isa}), {found['cores']} cores"
        lines = [
            f"{found['model']}, {found['size']}, {machine}, `{found['command']}`:",
            "",
            "| runtime | median, ms | least, ms | processor time, ms | of TensorFlow's |",
            "|---|---|---|---|---|",
        ]
        for row in found["rows"]:
            numbers = row["median_ms"], row["min_ms"], row["median_cpu_ms"], f"{row['relative']:.2f}"
            lines.append(f"| {row['runtime']} | {' | '.join(map(str, numbers))} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) or "No run of `benchmarks/runtimes.py` is stored."


def _table(contents):
    """Returns facts as a list, and the rows of the first list of records as a table."""
    rows = contents if isinstance(contents, list) else next(filter(_is_rows, contents.values()), [])
    facts = {} if isinstance(contents, list) else {k: v for k, v in contents.items() if not isinstance(v, list | dict)}
    lines = [f"- {name}: `{value}`" for name, value in facts.items()] + [""]
    if rows:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        lines += [f"| {' | '.join(_text(row.get(column, '')) for column in columns)} |" for row in rows]
    return "\n".join(lines)


def _is_rows(value):
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _text(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", r"\|")
