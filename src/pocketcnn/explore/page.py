"""The HTML of a page: template, style sheet, scripts and data in one file, under a strict content security policy."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pocketcnn.explore.runtime import ADDRESS
from pocketcnn.support.optional import optional_import

_FOLDER = Path(__file__).parent
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./(\w+)\.js";\n', re.MULTILINE)


def html(title: str, facts: Mapping[str, Any], blocks: Mapping[str, str], stored: str) -> str:
    """Renders a page.

    Args:
        title: of the page.
        facts: for the scripts, as values for JSON.
        blocks: packed content by name.
        stored: how weights are stored, in words.
    """
    jinja2 = optional_import("jinja2", extra="explore", purpose="the page")
    script, style = bundle(), (_FOLDER / "page.css").read_text(encoding="utf-8")
    connect = ADDRESS if facts["runtime"]["kind"] == "cdn" else "'none'"
    policy = (
        f"default-src 'none'; script-src {_hash(script)} blob: 'wasm-unsafe-eval'; style-src {_hash(style)}; "
        f"img-src data: blob:; media-src blob: mediastream:; connect-src {connect}; base-uri 'none'; form-action 'none'"
    )
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string((_FOLDER / "page.html.jinja").read_text(encoding="utf-8")).render(
        title=title, style=style, script=script, policy=policy, blocks=blocks, stored=stored, command=facts["command"],
        facts=json.dumps(facts, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c"),
    )  # fmt: skip


def bundle() -> str:
    """Joins the scripts into one: each module after those that it imports, without `import`, `export`, comments and indents.

    This needs names at the top of a module to differ from those of all others, and no text of several lines.
    """
    done: dict[str, str] = {}

    def add(name: str) -> None:
        if name in done:
            return
        text = (_FOLDER / "scripts" / f"{name}.js").read_text(encoding="utf-8")
        for other in _IMPORT.findall(text):
            add(other)
        done[name] = re.sub(r"^\s*(//.*\n|export )?", "", _IMPORT.sub("", text), flags=re.MULTILINE)

    add("app")
    return "\n".join(done.values())


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
