"""What the site adds to the pages in this folder: pages of the repository, pictures of the records, links to its files."""

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "README.md": "index.md"}
"""Pages outside of docs/ by what the site calls them. The README itself is not on the site; its place is the first page."""
PICTURES = {".svg", ".png"}
_FOREIGN = re.compile(r'<script src="https://unpkg.com/[^"]*"></script>')
_WORKER = (Path(__file__).parent / "worker.js").read_text(encoding="utf-8").replace("\\", "\\\\")
_LINK = re.compile(r"(\]\(|src=\"|href=\")(?![a-z]+:|#)([^)\s\"#]+)")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages and pictures from outside of docs/."""
    for source, name in PAGES.items():
        if source != "README.md":
            files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    for path in sorted((ROOT / "results").rglob("*")):
        if path.suffix in PICTURES:
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Puts our own script for searching without a server in the place of one that is loaded from another host."""
    return _FOREIGN.sub(f"<script>{_WORKER}</script>", output)


def on_post_template(output_content: str, template_name: str, config: Any) -> str:
    """Does the same for pages without Markdown."""
    return _FOREIGN.sub(f"<script>{_WORKER}</script>", output_content)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Makes links that lead out of docs/ lead to the page, the picture or the file in the repository."""
    source = {name: place for place, name in PAGES.items()}.get(page.file.src_uri) if page.file.generated_by else None
    here = PurePosixPath(source or f"docs/{page.file.src_uri}").parent

    def moved(match: re.Match[str]) -> str:
        target = normpath(here / match[2])
        return match[1] + _address(target, page.file.src_uri, config)

    return _LINK.sub(moved, markdown)


def _address(target: str, page: str, config: Any) -> str:
    """The address of a file of the repository, from a page of the site."""
    if target in PAGES:
        inside = PAGES[target]
    elif target.startswith("docs/"):
        inside = target.removeprefix("docs/")
    elif target.startswith("results/") and PurePosixPath(target).suffix in PICTURES:
        inside = target
    else:
        if not (ROOT / target).exists():
            return target  # mkdocs will say that it is missing
        kind = "tree" if (ROOT / target).is_dir() else "blob"
        return f"{config.extra['repository']}/{kind}/main/{target}"
    return relpath(inside, PurePosixPath(page).parent)
