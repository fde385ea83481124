"""No tracked text contains the words that docs/naming.md replaces."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

WORDS = {
    r"anew": "again, or recompute, rebuild",
    r"mend(?:s|ed|ing)?": "fix (a user), repair (a refresh)",
    r"meant over": "averaged over",
    r"is no (?:run|table|cache|data set|file|device|folder)": "is not a ..., does not exist",
    r"(?:no|some)body": "name who or what, or use the passive",
    r"for ever": "forever, or state the limit",
    r"leave_word": "mark_damaged",
    r"hurts?": "damaged, affected",
    r"hears?": "is called with, receives",
    r"look(?:s|ed|ing)? after": "maintain",
    r"(?:goes|went) on": "continues, resumes",
    r"(?:is|are|was) there twice": "appears twice",
    r"pictures?": "image, figure",
    r"(?:hands?|handed) over": "pass",
    r"told of": "notified of, receives",
    r"a (?:row|file|table|sentence) (?:a|each)": "one per ...",
    r"one a (?:fold|device|view|face|frame|head|file)": "one per ...",
}
"""Patterns, and what to write instead. A space stands for any white space, line ends included."""

SUFFIXES = {".env", ".md", ".py", ".service", ".toml", ".yaml"}
ROOT = Path(__file__).parents[2]
EXEMPT = {"docs/naming.md", "tests/unit/test_words.py"}
EXEMPT_FOLDER = "tests/golden/"
LINE_END = r"\s*\n[ \t]*(?:#[ \t]*)?"

PATTERNS = {
    re.compile(rf"(?<![a-z])(?:{words.replace(' ', rf'(?:[ ]+|{LINE_END})')})(?![a-z])", re.IGNORECASE): better
    for words, better in WORDS.items()
}
"""A word may stand inside a snake_case name; a comment may be wrapped within a phrase."""


def tracked_texts():
    """Names and contents of tracked text files, and of CHANGELOG the newest entry."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and a checkout, which list the tracked files")
    found = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True, check=True)
    for name in filter(None, found.stdout.split("\0")):
        path = ROOT / name
        is_text = path.suffix in SUFFIXES or path.name == "Makefile"
        if is_text and name not in EXEMPT and not name.startswith(EXEMPT_FOLDER) and path.exists():
            text = path.read_text()
            yield name, text if name != "CHANGELOG.md" else "\n## ".join(text.split("\n## ")[:2])


def slips(name, text):
    """Lines `file:line: words (better: ...)` of one text, in order."""
    hits = [
        (match.start(), match.group(), better)
        for pattern, better in PATTERNS.items()
        for match in pattern.finditer(text)
    ]
    return [
        f"{name}:{text.count(chr(10), 0, start) + 1}: {re.sub(LINE_END, ' ', words)} (better: {better})"
        for start, words, better in sorted(hits)
    ]


def test_no_tracked_text_contains_a_replaced_word():
    found = [slip for name, text in tracked_texts() for slip in slips(name, text)]
    assert not found, f"{len(found)} words that docs/naming.md replaces:\n" + "\n".join(found)


def test_slips_are_found_in_names_over_line_ends_and_only_as_whole_words():
    text = "Nothing.\nit mends\n    # meant\n    # over\nleave_word()\nrecommended, hurtle, a row above, done_anew\n"
    assert [slip.split(" (")[0] for slip in slips("f.py", text)] == [
        "f.py:2: mends",
        "f.py:3: meant over",
        "f.py:5: leave_word",
        "f.py:6: anew",
    ]
