import numpy as np
import pandas as pd
import pytest

from pipeline.errors import DataError
from pipeline.protocols import (
    PROTOCOLS,
    check_subject_exclusive,
    presence_from_intensity,
    presence_from_occurrence,
    train_parts,
)


@pytest.mark.parametrize(("name", "num_subjects", "num_aus"), [("bp4d", 41, 12), ("disfa", 27, 8)])
def test_published_parts_hold_every_subject_once(name, num_subjects, num_aus):
    rules = PROTOCOLS[name]
    assert len(rules.subject_parts) == num_subjects
    assert len(rules.aus) == num_aus
    assert set(rules.subject_parts.values()) == {"P1", "P2", "P3"}


def test_bp4d_parts_are_the_published_sizes():
    sizes = [list(PROTOCOLS["bp4d"].subject_parts.values()).count(part) for part in ("P1", "P2", "P3")]
    assert sizes == [14, 14, 13]


def test_disfa_bad_frames_leave_the_published_number():
    # 27 subjects x 4845 label lines, SN010 one fewer; 126,144 remain once the bad ranges are left out.
    rules = PROTOCOLS["disfa"]
    remaining = sum(
        not rules.is_bad_frame(subject, frame)
        for subject in rules.subject_parts
        for frame in range(1, 4845 if subject == "SN010" else 4846)
    )
    assert remaining == 126_144


def test_unknown_subject_is_refused_and_rendered_ones_go_by_number():
    with pytest.raises(DataError, match="'F099' is in no part of protocol bp4d"):
        PROTOCOLS["bp4d"].get_part("F099")
    assert [PROTOCOLS["rendered_bp4d"].get_part(s) for s in ("F003", "M001", "F002")] == ["P1", "P2", "P3"]
    with pytest.raises(DataError, match="no number"):
        PROTOCOLS["rendered_bp4d"].get_part("Anna")


def test_bp4d_plus_has_its_subjects_and_coded_tasks():
    rules = PROTOCOLS["bp4d_plus"]
    assert len(rules.subject_parts) == 140
    assert rules.tasks == ("T1", "T6", "T7", "T8")
    assert [rules.get_part(name) for name in ("F081", "F082", "M058")] == ["P1", "P2", "P2"]
    with pytest.raises(DataError, match="'M059' is in no part"):
        rules.get_part("M059")


def test_names_are_those_of_the_protocol_in_any_case():
    rules = PROTOCOLS["bp4d"]
    assert (rules.find_subject("f001"), rules.find_subject("x"), rules.find_task("t3")) == ("F001", "x", "T3")


def test_codes_become_labels_and_the_rest_is_unknown():
    assert presence_from_occurrence(np.array([0, 1, 9, 5])).tolist() == [0, 1, -1, -1]
    labels = presence_from_intensity(np.array([0, 1, 2, 5, 9, -1]), min_positive=2)
    assert labels.tolist() == [0, 0, 1, 1, -1, -1]
    assert labels.dtype == np.int8


def test_folds_name_the_tested_part_and_never_share_subjects():
    assert train_parts("P2") == ("P1", "P3")
    whole = pd.DataFrame({"subject": ["a", "b", "c"], "part": ["P1", "P2", "P3"]})
    check_subject_exclusive(whole)
    with pytest.raises(DataError, match="subject a has frames in 2 parts"):
        check_subject_exclusive(pd.concat([whole, pd.DataFrame({"subject": ["a"], "part": ["P2"]})]))
    with pytest.raises(DataError, match="part P3 has no frames"):
        check_subject_exclusive(whole[:2])
