import errno
import pickle

import pytest
import tblib.pickling_support

from pipeline import errors
from pipeline.errors import FantransError, WriteError, is_io_failure

CLASSES = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, FantransError)]


tblib.pickling_support.install()  # as Dask does where it is imported


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_keeps_its_class_and_sentence_between_processes(kind):
    error = pickle.loads(pickle.dumps(kind("it is so; do that")))
    assert type(error) is kind
    assert str(error) == "it is so; do that"


def test_a_failed_write_keeps_its_errno_between_processes():
    error = pickle.loads(pickle.dumps(WriteError("the disk is full", errno.ENOSPC)))
    assert (str(error), error.errno) == ("the disk is full", errno.ENOSPC)
    assert isinstance(error, OSError)


def test_what_does_not_exist_is_a_file_not_found_error_and_what_is_wrong_a_value_error():
    missing = {each for each in CLASSES if issubclass(each, FileNotFoundError)}
    assert missing == {errors.DataNotFoundError, errors.StoreNotFoundError, errors.WeightsNotFoundError}
    wrong = {each for each in CLASSES if issubclass(each, ValueError)}
    assert {errors.CatalogError, errors.ConfigError, errors.DataError, errors.StoreError, *missing} <= wrong


def test_input_and_output_fail_where_the_system_says_so_and_not_where_a_file_is_missing():
    assert is_io_failure(OSError(errno.EIO, "again"))
    assert is_io_failure(WriteError("the disk is full", errno.ENOSPC))
    for kind in CLASSES:
        assert is_io_failure(kind("x")) == (kind is WriteError)


def test_wrong_words_of_the_user_end_a_command_with_2_and_everything_else_with_1():
    wrong = {each for each in CLASSES if each.exit_status == 2}
    assert wrong == {errors.UsageError, errors.CatalogError, errors.ConfigError}
    assert {each.exit_status for each in CLASSES if each not in wrong} == {1}
