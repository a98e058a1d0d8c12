"""Writes tables of the measurements in ``benchmarks/results``."""

import ast
import json
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks"
RESULTS = SCRIPTS / "results"
_PEER = "--peer-python PYTHON_WITH_TORCHVISION"
# Title and options of each script. If a file of results has a "command", the site shows it instead of the options.
_MEASURED = {
    "augmentation": ("Augmentation of small datasets", "--data FOLDER"),
    "cuda_ops": ("Operations on NVIDIA GPUs", ""),
    "data": ("Throughput of the data pipeline", f"--annotations coco_cc/train.json --also TFRECORD {_PEER} --rounds 3"),
    "evaluation": ("Evaluation and analysis", ""),
    "from_scratch": ("Training from random weights", "shapes bccd dsb --data FOLDER --seconds 110 --int8"),
    "ops": ("Operations on CPUs", _PEER),
    "rtmdet": ("Latency of RTMDet-tiny", f"{_PEER} --rounds 2"),
    "runtimes": ("Latency of RetinaNet in each runtime", f"CASE {_PEER}"),
}


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
    script = _script(path)
    case = path.stem.removeprefix(script).replace("_", " ").strip().upper()
    return _MEASURED[script][0] + (f" ({case})" if case else "")


def _script(path):
    """Returns the name of the script that wrote a file: NAME for NAME.json and NAME_DEVICE.json."""
    names = [name for name in _MEASURED if f"{path.stem}_".startswith(f"{name}_")]
    if not names:
        raise ValueError(
            f"{path} has the name of no script in _MEASURED: name it SCRIPT.json or SCRIPT_DEVICE.json, or add the "
            "script."
        )
    return max(names, key=len)


def origin(path):
    """Returns the purpose of the script that wrote a file, and the command."""
    script, contents = _script(path), json.loads(path.read_text())
    purpose = ast.get_docstring(ast.parse((SCRIPTS / f"{script}.py").read_text())).partition("\n\n")[0]
    command = f"python benchmarks/{script}.py {_MEASURED[script][1]}".strip()
    if isinstance(contents, dict):
        command = contents.get("command", command)
    return f"{purpose} (`{command} --json {path.name}`; `--help` lists the options.)"


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
    facts.pop("command", None)  # `origin` shows it
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
