"""Make examples/first.ipynb from the cells of examples/first.py, which it runs, outputs kept.

Run as `python examples/notebook.py`; a cell begins at `# %%`, or `# %% [markdown]` for text.
"""

from __future__ import annotations

import ast
import code
import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def lines(text: str) -> list[str]:
    """Text as notebooks store it."""
    return text.splitlines(keepends=True)


def shown_by(cell: str, interpreter: code.InteractiveInterpreter) -> list[dict[str, Any]]:
    """Outputs of a cell: what it prints and, as in a notebook, the value of its last line."""
    body, printed = ast.parse(cell).body, io.StringIO()
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(printed):
        interpreter.runcode(compile(ast.Module(body, []), "first.py", "exec"))
        if last is not None:  # `single` prints its value
            interpreter.runcode(compile(ast.Interactive([last]), "first.py", "single"))
    said = printed.getvalue()
    if not said:
        return []
    return [{"output_type": "stream", "name": "stdout", "text": lines(said)}]


def notebook(source: str) -> dict[str, Any]:
    """The notebook (nbformat 4.5) of a script in cells."""
    cells, interpreter = [], code.InteractiveInterpreter({"__name__": "__main__"})
    interpreter.showtraceback = _raise
    parts = re.split(r"^# %%(.*)\n", source, flags=re.M)[1:]
    for number, (kind, text) in enumerate(zip(parts[::2], parts[1::2], strict=True)):
        cell = {"id": f"cell-{number}", "metadata": {}}
        if "[markdown]" in kind:
            text = re.sub(r"^# ?", "", text.strip(), flags=re.M)
            cells.append(cell | {"cell_type": "markdown", "source": lines(text)})
        else:
            count = sum(each["cell_type"] == "code" for each in cells) + 1
            made = {"execution_count": count, "outputs": shown_by(text, interpreter)}
            cells.append(cell | {"cell_type": "code", "source": lines(text.strip())} | made)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    about = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": about, "nbformat": 4, "nbformat_minor": 5}


def _raise() -> None:
    raise  # what the interpreter would only print


if __name__ == "__main__":
    made = notebook((HERE / "first.py").read_text(encoding="utf-8"))
    text = json.dumps(made, indent=1, ensure_ascii=False) + "\n"
    (HERE / "first.ipynb").write_text(text, encoding="utf-8")
