"""Where tests of whole builds and trainings work."""

import pytest

IN_MEMORY = ("test_build", "test_doctor", "test_maintenance", "test_trainer", "test_weight_files")
"""Files whose tests would wait for the disk most of their time."""


@pytest.fixture
def tmp_path(request, tmp_path):
    """A folder of a test's own, in memory for the files of `IN_MEMORY`."""
    return request.getfixturevalue("memory_path") if request.path.stem in IN_MEMORY else tmp_path
