"""Writes tables of the measurements in ``benchmarks/results``."""

import ast
import json
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks"
RESULTS = SCRIPTS / "results"


def benchmarks() -> str:
    """Returns a section for each JSON file of results, or a sentence if there are none."""
    files = sorted(RESULTS.glob("*.json"))
    if not files:
        return "`benchmarks/results` holds no measurements of this version yet."
    return "\n\n".join(
        f"### {_title(path)}\n\n{origin(path)}\n\n{_table(json.loads(path.read_text()))}" for path in files
    )


def results(name: str) -> str:
    """Returns the facts and the table of one file of results.

    Args:
        name: Name of the file without its folder and suffix.
    """
    return _table(json.loads((RESULTS / f"{name}.json").read_text()))


def _title(path):
    return path.stem.replace("_", " ").capitalize()


def origin(path):
    """Returns the purpose of the script that wrote a file, and the command. NAME_DEVICE.json comes from NAME.py."""
    names = [script.stem for script in SCRIPTS.glob("*.py") if f"{path.stem}_".startswith(f"{script.stem}_")]
    if not names:
        raise ValueError(f"{path} has the name of no script in {SCRIPTS}: name it SCRIPT.json or SCRIPT_DEVICE.json.")
    script = max(names, key=len)
    purpose = ast.get_docstring(ast.parse((SCRIPTS / f"{script}.py").read_text())).partition("\n\n")[0]
    return f"{purpose} (`python benchmarks/{script}.py --json {path.name}`; `--help` lists the options.)"


def runtimes() -> str:
    """Returns the results of ``benchmarks/runtimes.py`` as tables, one for each model."""
    parts = []
    for path in sorted(RESULTS.glob("runtimes_*.json"), reverse=True):
        found = json.loads(path.read_text())
        isa = ", ".join(f"{'with' if found[name] else 'without'} {name.upper()}" for name in ("avx512", "amx"))
        machine = f"{found['processor']} (family and model {found['family_and_model']}; {isa}), {found['cores']} cores"
        machine += f", load average {found['load_average']:.1f}"
        lines = [
            f"{found['model']}, {found['size']}, {machine}, `{found['command']}`:",
            "",
            "| runtime | median, ms | least, ms | processor time, ms | the same as a part of TensorFlow's |",
            "|---|---|---|---|---|",
        ]
        for row in found["rows"]:
            numbers = row["median_ms"], row["min_ms"], row["median_cpu_ms"], f"{row['relative']:.2f}"
            lines.append(f"| {row['runtime']} | {' | '.join(map(str, numbers))} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) or "No run of `benchmarks/runtimes.py` is stored."


def latency() -> str:
    """Returns a table of the median latency of exports, with a column for each model and input size."""
    columns = {}
    for path in (RESULTS / "rtmdet.json", *sorted(RESULTS.glob("runtimes_*.json"))):
        found = json.loads(path.read_text())
        for row in found["rows"]:
            if row.get("mebibytes", 1) is None:  # another model, which has no file
                continue
            case = f"{found['model']}, {row.get('size', found.get('size'))}{', with AMX' if found.get('amx') else ''}"
            column = columns.setdefault(case, {})
            column[row.get("side", row.get("runtime"))] = f"{row['median_ms']:.0f}"
    sides = dict.fromkeys(side for column in columns.values() for side in column)
    rows = [f"| {side} | {' | '.join(column.get(side, '') for column in columns.values())} |" for side in sides]
    return "\n".join([f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|", *rows])


def _table(contents):
    """Returns facts as a list, and the rows of the first list of records as a table."""
    rows = contents if isinstance(contents, list) else next(filter(_is_rows, contents.values()), [])
    facts = {} if isinstance(contents, list) else {k: v for k, v in contents.items() if not isinstance(v, list | dict)}
    lines = [f"- {name.replace('_', ' ')}: `{value}`" for name, value in facts.items()] + [""]
    if rows:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        lines += [f"| {' | '.join(columns).replace('_', ' ')} |", "|---" * len(columns) + "|"]
        lines += [f"| {' | '.join(_text(row.get(column, '')) for column in columns)} |" for row in rows]
    return "\n".join(lines)


def _is_rows(value):
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _text(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", r"\|")
