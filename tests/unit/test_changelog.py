"""Each release in the changelog says whether a refresh is needed, and what to do."""

import re

from pipeline.project import PACKAGES_FOLDER

CHANGELOG = PACKAGES_FOLDER / "CHANGELOG.md"


def test_each_release_says_whether_a_refresh_is_needed_and_what_to_do():
    _, *releases = re.split(r"^## ", CHANGELOG.read_text(), flags=re.MULTILINE)
    assert releases
    for release in releases:
        name, _, text = release.partition("\n")
        start = text.split("\n- ", 1)[0]
        assert re.search(r"^\*\*Refresh needed: (yes|no)\*\*", start, flags=re.MULTILINE), name
        assert re.search(r"^\*\*To do:\*\* \S", start, flags=re.MULTILINE), name
