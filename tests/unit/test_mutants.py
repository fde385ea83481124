import runpy
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
MUTANTS = runpy.run_path(str(CHECKOUT / "benchmarks/mutants.py"))["MUTANTS"]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{Path(mutant.file).stem}: {mutant.old.strip()[:40]}")
def test_each_mutant_changes_one_line_that_is_there_and_names_tests_that_exist(mutant):
    assert (CHECKOUT / mutant.file).read_text().count(mutant.old) == 1
    assert mutant.new != mutant.old
    assert all((CHECKOUT / "tests" / test).exists() for test in mutant.tests)
