import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.store.plan import NO_ROW, Unit, assign_rows, make_plan

BLOCK_ROWS = 4
PARTS = ("P1", "P2", "P3")


FRAMES = st.tuples(
    st.sampled_from(PARTS), st.sampled_from(("old", "old", "new", "", None)), st.booleans(), st.integers(1, 2)
)
"""A frame's part, the key that is wanted (None: it has gone), whether it is stored, and the step to its slot."""


@st.composite
def tables(draw):
    """A wanted table, what is known, and the first free block: frames stay, change, go, come, or have no values.

    A frame keeps its part. Known rows lie in blocks of one part, before the first free block (published) or from it on
    (units that a killed refresh finished), and may have holes.
    """
    frames = draw(st.lists(FRAMES, max_size=30))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    blocks, places, known = iter(random.permutation(20).tolist()), {}, []
    for i, (part, _, is_stored, gap) in enumerate(frames):
        if is_stored:
            block, slot = places.get(part, (None, BLOCK_ROWS))
            block, slot = (next(blocks), gap - 1) if slot + gap >= BLOCK_ROWS else (block, slot + gap)
            places[part] = block, slot
            known.append((f"f{i}", "old", block * BLOCK_ROWS + slot))
    wanted = [(f"f{i}", key, part) for i, (part, key, _, _) in enumerate(frames) if key is not None]
    wanted = [wanted[i] for i in random.permutation(len(wanted))]
    return (
        pd.DataFrame(wanted, columns=["frame_id", "key", "part"]),
        pd.DataFrame(known, columns=["frame_id", "key", "row"]).astype({"row": np.int64}),
        draw(st.integers(0, 20)),
    )


some = settings(max_examples=30, deadline=None)


def assigned(made, *, is_shuffled=True):
    wanted, known, first_free_block = made
    return assign_rows(wanted, known, first_free_block=first_free_block, block_rows=BLOCK_ROWS, is_shuffled=is_shuffled)


def new_rows(index, known):
    """The index's rows that nothing known holds."""
    rows = index.loc[index["row"] != NO_ROW]
    return rows[~rows["row"].isin(known["row"])]


@some
@given(tables(), st.booleans())
def test_every_wanted_frame_is_listed_once_and_no_two_share_a_row(made, is_shuffled):
    index = assigned(made, is_shuffled=is_shuffled)
    assert sorted(index["frame_id"]) == sorted(made[0]["frame_id"])
    rows = index.loc[index["row"] != NO_ROW, "row"]
    assert rows.is_unique
    assert (rows >= 0).all()
    listed = index.set_index("frame_id").loc[made[0]["frame_id"], ["key", "part"]]
    assert listed.to_numpy().tolist() == made[0][["key", "part"]].to_numpy().tolist()


@some
@given(tables(), st.booleans())
def test_a_frame_has_no_row_exactly_where_its_key_is_empty(made, is_shuffled):
    index = assigned(made, is_shuffled=is_shuffled)
    assert ((index["row"] == NO_ROW) == (index["key"] == "")).all()


@some
@given(tables(), st.booleans())
def test_a_frame_with_the_key_that_is_known_keeps_its_row(made, is_shuffled):
    index = assigned(made, is_shuffled=is_shuffled)
    kept = index.merge(made[1], on=["frame_id", "key"], suffixes=("", "_known"))
    assert (kept["row"] == kept["row_known"]).all()


@some
@given(tables(), st.booleans())
def test_a_block_holds_frames_of_one_part(made, is_shuffled):
    index = assigned(made, is_shuffled=is_shuffled)
    live = index[index["row"] != NO_ROW]
    for _, parts in live.groupby(live["row"] // BLOCK_ROWS)["part"]:
        assert len(set(parts)) == 1


@some
@given(tables(), st.booleans())
def test_new_frames_fill_blocks_that_are_free_and_whole(made, is_shuffled):
    _, known, first_free_block = made
    fresh = new_rows(assigned(made, is_shuffled=is_shuffled), known)
    blocks = fresh["row"] // BLOCK_ROWS
    assert not set(blocks) & set(known["row"] // BLOCK_ROWS)
    assert (blocks >= first_free_block).all()
    for _, slots in (fresh["row"] % BLOCK_ROWS).groupby(blocks):
        assert sorted(slots) == list(range(len(slots)))
    for part, each in fresh.groupby("part"):
        assert each["row"].floordiv(BLOCK_ROWS).nunique() == -(-len(each) // BLOCK_ROWS), part
    free = sorted(set(range(first_free_block, first_free_block + 60)) - set(known["row"] // BLOCK_ROWS))
    assert sorted(set(blocks)) == free[: blocks.nunique()]


@some
@given(tables(), st.integers(0, 99))
def test_where_rows_are_shuffled_the_order_of_the_wanted_table_decides_nothing(made, seed):
    wanted, *rest = made
    reordered = wanted.sample(frac=1, random_state=seed, ignore_index=True)
    assert assigned((reordered, *rest)).equals(assigned(made))


@some
@given(tables())
def test_where_rows_are_not_shuffled_new_frames_of_a_part_keep_the_order_of_the_wanted_table(made):
    wanted, known, _ = made
    fresh = new_rows(assigned(made, is_shuffled=False), known)
    place = {name: i for i, name in enumerate(wanted["frame_id"])}
    for _, each in fresh.groupby("part"):
        assert each.sort_values("row")["frame_id"].map(place).is_monotonic_increasing


def test_shuffled_rows_do_not_follow_the_names():
    names = [f"f{i:03d}" for i in range(64)]
    wanted = pd.DataFrame({"frame_id": names, "key": "a", "part": "P1"})
    known = pd.DataFrame({"frame_id": [], "key": [], "row": []}, dtype=object)
    index = assigned((wanted, known, 0)).sort_values("row")
    distances = np.abs(np.diff(index["frame_id"].str[1:].astype(int)))
    assert (distances == 1).mean() < 0.2


# --- plans


def plan_for(wanted, known, *, published=None, done=(), groups=("one", "two"), **more):
    return make_plan(
        wanted,
        known=known,
        published=published,
        done=done,
        needs_repair=False,
        groups=groups,
        first_free_block=0 if published is None else 2,
        block_rows=BLOCK_ROWS,
        row_bytes=10,
        is_shuffled=False,
        **more,
    )


def six_frames(**changes):
    return pd.DataFrame({"frame_id": list("abcdef"), "key": "old", "part": "P1"} | changes)


NOTHING = pd.DataFrame({"frame_id": [], "key": [], "row": []}, dtype=object)


def test_a_first_plan_computes_every_unit_and_counts_its_bytes():
    plan = plan_for(six_frames(), NOTHING)
    assert plan.units == (Unit(0, "one"), Unit(0, "two"), Unit(1, "one"), Unit(1, "two"))
    assert (plan.num_kept, plan.num_computed, plan.num_dropped, plan.num_bytes) == (0, 6, 0, 6 * 2 * 10)
    assert plan.rows_in(1)["frame_id"].tolist() == ["e", "f"]
    assert plan.is_new


def test_units_that_are_done_are_not_computed_again():
    first = plan_for(six_frames(), NOTHING)
    known = first.index[["frame_id", "key", "row"]]
    done = set(first.units) - {Unit(1, "two")}
    plan = plan_for(six_frames(), known, published=first.index, done=done)
    assert plan.units == (Unit(1, "two"),)
    assert (plan.num_kept, plan.num_computed, plan.num_dropped, plan.num_bytes) == (4, 2, 0, 2 * 10)
    whole = plan_for(six_frames(), known, published=first.index, done=set(first.units))
    assert (whole.units, whole.num_kept, whole.is_new) == ((), 6, False)


def test_changed_and_removed_frames_are_dropped_and_another_column_makes_a_new_revision():
    first = plan_for(six_frames(status="ok"), NOTHING)
    known, done = first.index[["frame_id", "key", "row"]], set(first.units)
    changed = six_frames(status="ok", key=["new", *["old"] * 5])[:5]
    plan = plan_for(changed, known, published=first.index, done=done)
    assert (plan.num_kept, plan.num_computed, plan.num_dropped) == (4, 1, 2)
    assert plan.units == (Unit(2, "one"), Unit(2, "two"))
    relabelled = plan_for(six_frames(status="interpolated"), known, published=first.index, done=done)
    assert (relabelled.units, relabelled.is_new) == ((), True)
