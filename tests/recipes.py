"""The code blocks of docs/scripts.md, by their heading, and a function that runs one as a script."""

import re
import subprocess
import sys
from pathlib import Path

PAGE = (Path(__file__).parents[1] / "docs/scripts.md").read_text()
BLOCK = re.compile(r"^```(?P<language>sh|python)\n(?P<code>.*?)^```$", re.M | re.S)
FIRST_LINES = {block["language"]: block["code"] for block in BLOCK.finditer(PAGE.split("\n## ")[0])}
RECIPES = {
    section.split("\n")[0]: [block.group("language", "code") for block in BLOCK.finditer(section)]
    for section in PAGE.split("\n### ")[1:]
}


def run_recipe(title, *, environment, folder, replace=("", "")):
    """Run the block under a heading, after the first lines of its language, in a process of its own."""
    ((language, code),) = RECIPES[title]
    assert replace[0] in code
    interpreter = ["bash", "-euo", "pipefail"] if language == "sh" else [sys.executable]
    variables = environment | {"PATH": f"{Path(sys.executable).parent}:{environment['PATH']}"}
    script = FIRST_LINES[language] + (code.replace(*replace) if replace[0] else code)
    return subprocess.run(
        [*interpreter, "-c", script],
        env=variables,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
