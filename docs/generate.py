"""Write the pages of the site: those of the repository, in its folders, and the generated reference.

`python -m docs.generate FOLDER` prepares FOLDER for `mkdocs build`; `make docs` runs both. A link that is right on
GitHub is right on the site, because both have the same folders.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from docs.diagrams import figures
from docs.reference import reference_pages

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "models/**/*.md")

_ITEM = re.compile(r"(?:[-*]|\d+\.) +")
_LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")


def with_wide_lists(text: str) -> str:
    """Return a page whose list items continue at four spaces, as Python-Markdown requires; GitHub asks for fewer."""
    lines, width, in_code = [], 0, False
    for line in text.split("\n"):
        in_code ^= line.startswith("```")
        if not in_code and (item := _ITEM.match(line)):
            width = len(item[0])
        elif width and line.startswith(" " * width):
            lines.append(" " * 4 + line[width:])
            continue
        elif line:
            width = 0
        lines.append(line)
    return "\n".join(lines)


def linked_files(page: Path, text: str) -> Iterator[Path]:
    """Yield the files of the repository that a page links to and that are no pages themselves."""
    for target in _LINK.findall(text):
        path = (page.parent / target).resolve()
        if path.is_file() and path.suffix != ".md":
            yield path


def write_pages(out: Path) -> None:
    """Write all pages, and the files that they link to, into an emptied folder."""
    shutil.rmtree(out, ignore_errors=True)
    files = {path: path.read_text() for pattern in PAGES for path in sorted(ROOT.glob(pattern))}
    written = {path.relative_to(ROOT): with_wide_lists(text) for path, text in files.items()}
    written |= {Path("docs/reference") / name: text for name, text in reference_pages().items()}
    copied = {linked for page, text in files.items() for linked in linked_files(page, text)}
    for path in {*copied, ROOT / "docs/site.css"}:
        _place(out / path.relative_to(ROOT)).write_bytes(path.read_bytes())
    written |= {Path("docs/figures") / name: text for name, text in figures().items()}
    for name, text in written.items():
        _place(out / name).write_text(text)


def _place(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]))
