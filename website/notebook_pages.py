"""A notebook as a page: its text, its code, and what the cells gave."""

from __future__ import annotations

import base64
import html
import json
import re
from pathlib import Path
from typing import Any


def page(notebook: Path, folder: Path) -> str:
    """The notebook in Markdown; its pictures are written to `folder`."""
    written = []
    for number, cell in enumerate(json.loads(notebook.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            written.append(source)
        elif cell["cell_type"] == "code":
            written.append(f"```python\n{source}\n```")
            for place, output in enumerate(cell["outputs"]):
                written.append(_shown(output, folder, f"{notebook.stem}-{number}-{place}.png"))
    title, *rest = written
    download = f"*A notebook: [{notebook.name}](download/{notebook.name}), as it ran.*"
    first, _, more = title.partition("\n")
    return "\n\n".join([first, download, more.strip(), *(one for one in rest if one)]) + "\n"


def _shown(output: dict[str, Any], folder: Path, picture: str) -> str:
    """One output: a picture, a table, or text."""
    if output["output_type"] == "stream":
        return _text("".join(output["text"]))
    data = output["data"]
    if "image/png" in data:
        (folder / picture).write_bytes(base64.b64decode("".join(data["image/png"])))
        return f"![what the cell drew]({picture})"
    if "text/html" in data:
        table = re.sub(r"<style.*?</style>|\n\s*", "", "".join(data["text/html"]), flags=re.DOTALL)
        return f'<div class="output" markdown="0">{table}</div>'
    return _text("".join(data.get("text/plain", "")))


def _text(said: str) -> str:
    return f'<pre class="output">{html.escape(said.rstrip())}</pre>'
