"""Render Markdown as a self-contained HTML page."""

from __future__ import annotations

from html import escape
from pathlib import Path

from markdown_it import MarkdownIt

from pipeline.runtime.atomic import write_bytes_atomically

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
  body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a }}
  h1 {{ font-size: 1.4rem }} h2 {{ font-size: 1.1rem }}
  table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }}
  th, td {{ padding: .25rem .75rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }}
  th:first-child, td:first-child {{ text-align: left }}
  th {{ border-bottom: 2px solid #888 }}
  code {{ background: #f3f3f3; padding: 0 .2rem; overflow-wrap: anywhere }}
</style>
{body}
</html>
"""


def write_html(path: Path, markdown: str) -> None:
    """Write `markdown` as a page to `path`; its first line is the title."""
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    page = _PAGE.format(title=escape(markdown.splitlines()[0].lstrip("# ")), body=body)
    write_bytes_atomically(path, page.encode())
