"""Random histories of a cache against a dictionary: it always serves exactly what was last published.

FANTRANS_MODEL_STEPS sets the total number of steps.
"""

import itertools
import os
import random
import shutil
import signal
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pipeline.cache.reader import open_cache
from pipeline.config import ViewConfig
from pipeline.faces.geometry import cut_crop, frame_from_crop
from pipeline.faces.views import render_view, view_params
from pipeline.store.prune import prune_store
from pipeline.store.revisions import load_revision
from pipeline.store.verify import mark_damaged, verify_store
from pipeline.training.loader import CachedFrames, HeadBatches, TrainingPages
from tests.processes import make_process
from tests.unit import small_cache
from tests.unit.small_cache import AUS, CROP, CROPS_FORMAT, FORMAT, make_cache, make_crops

NUM_STEPS = int(os.environ.get("FANTRANS_MODEL_STEPS", "250"))
BOX = np.array([18.0, 12.0, 44.0, 40.0], np.float32)


class CacheLife(RuleBasedStateMachine):
    """`wanted` is the data set on disk, `published` the one that the cache must serve."""

    num_steps = num_killed = 0

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=os.environ.get("PYTEST_DEBUG_TEMPROOT")))
        self.wanted, self.gone, self.published = {}, {}, {}
        self.num_views, self.num_made = 2, 0
        self.pinned = None

    def teardown(self):
        self.pinned = None
        shutil.rmtree(self.folder)

    # --- the data set

    @initialize()
    def begin(self):
        self.add(3)
        self.refresh(2)

    @rule(num=st.integers(1, 5))
    def add(self, num):
        for _ in range(num):
            self.num_made += 1
            name = f"F{self.num_made % 4:03d}/T1/{self.num_made}"
            self.wanted[name] = {"image": self._draw(name), "label": self.num_made % 2}

    @rule(data=st.data())
    @precondition(lambda self: self.wanted)
    def replace(self, data):
        name = data.draw(st.sampled_from(sorted(self.wanted)))
        self.wanted[name] = {**self.wanted[name], "image": self._draw(name)}

    @rule(data=st.data())
    @precondition(lambda self: len(self.wanted) > 1)
    def remove(self, data):
        name = data.draw(st.sampled_from(sorted(self.wanted)))
        self.gone[name] = self.wanted.pop(name)

    @rule()
    @precondition(lambda self: self.gone)
    def bring_back(self):
        """A disk that was away is mounted again: the images are those that left."""
        self.wanted |= self.gone
        self.gone = {}

    @rule(data=st.data())
    def relabel(self, data):
        name = data.draw(st.sampled_from(sorted(self.wanted)))
        self.wanted[name] = {**self.wanted[name], "label": 1 - self.wanted[name]["label"]}

    # --- the cache

    @rule(num_views=st.integers(2, 3))
    def refresh(self, num_views):
        frames, boxes = self._tables()
        make_cache(self.folder, frames, make_crops(self.folder, frames, boxes), views=ViewConfig(num_views=num_views))
        self.published, self.num_views = dict(self.wanted), max(self.num_views, num_views)

    @rule(num_views=st.integers(2, 3), step=st.integers(1, 60))
    def kill(self, num_views, step):
        frames, boxes = self._tables()
        before = self._revision()
        arguments = (self.folder, frames, boxes, ViewConfig(num_views=num_views), step)
        process = make_process(target=small_cache.refresh_all_until_step, args=arguments)
        process.start()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        CacheLife.num_killed += process.exitcode != 0
        if self._revision() != before or process.exitcode == 0:
            self.published, self.num_views = dict(self.wanted), max(self.num_views, num_views)

    @rule(grace_s=st.sampled_from([0, 3600]))
    def collect(self, grace_s):
        for folder, format in ((self.cache_folder, FORMAT), (self.crops_folder, CROPS_FORMAT)):
            prune_store(folder, format, grace_s=grace_s)

    @rule()
    def verify(self):
        for folder in (self.cache_folder, self.crops_folder):
            assert [damage for damage in verify_store(folder, is_deep=True) if damage.unit is not None] == []

    @rule(data=st.data())
    def damage_and_repair(self, data):
        shards = sorted(path for path in self.cache_folder.rglob("c.*"))
        shard = data.draw(st.sampled_from(shards))
        content = bytearray(shard.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1
        self.pinned = None  # rows that only an old revision has cannot be recomputed
        shard.write_bytes(content)
        mark_damaged(self.cache_folder, verify_store(self.cache_folder, is_deep=True))
        self.refresh(self.num_views)

    @rule()
    def pin(self):
        cache = open_cache(self.cache_folder)
        self.pinned = cache, dict(self.published)

    @rule(epoch=st.integers(0, 3))
    @precondition(lambda self: self.wanted.keys() & self.published.keys())
    def read_as_training_does(self, epoch):
        frames, _ = self._tables()
        cache = open_cache(self.cache_folder)
        pages = TrainingPages(cache, frames, parts=set(frames["part"]))
        batches = HeadBatches(cache, CachedFrames(cache, frames, aus=AUS), batch_size=1, seed=0)
        for batch in (batch for page in pages.epochs(epoch, epoch + 1) for batch in batches.from_page(page)):
            (name,) = batch.frame_ids
            assert batch.labels_BA[0, 0] == self.wanted[name]["label"]  # labels are those of the index, at once
            true = self._true(name, self.published, pages.view_in(epoch))
            np.testing.assert_array_equal(batch.features["h1"][0].numpy(), true["h1"])

    # --- what must always hold

    @invariant()
    def it_serves_what_was_published(self):
        CacheLife.num_steps += 1
        if self.published:
            self._check(open_cache(self.cache_folder), self.published)

    @invariant()
    def a_reader_keeps_what_it_pinned(self):
        if self.pinned is not None:
            self._check(*self.pinned)

    def _check(self, cache, expected):
        assert sorted(cache.index["frame_id"]) == sorted(expected)
        rows = cache.index.set_index("frame_id")["row"]
        some = random.Random(len(expected)).sample(sorted(expected), min(4, len(expected)))
        for view in range(cache.num_views):
            found = cache.read(rows.loc[some].to_numpy(), view=view)
            for i, name in enumerate(some):
                for array, values in self._true(name, expected, view).items():
                    np.testing.assert_array_equal(found[array][i], values)

    # --- helpers

    @property
    def cache_folder(self):
        return FORMAT.folder_in(self.folder / "cache")

    @property
    def crops_folder(self):
        return CROPS_FORMAT.folder_in(self.folder / "crops")

    def _revision(self):
        revision = load_revision(self.cache_folder)
        return None if revision is None else revision.number

    def _draw(self, name):
        """Replace the image of a frame by a new one; returns the new image's number."""
        self.num_made += 1
        path = self.folder / "raw" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), small_cache.draw_image(self.num_made)[..., ::-1])
        os.utime(path, ns=(self.num_made * 10**9,) * 2)  # a clock too coarse to see two changes in a row
        return self.num_made

    def _tables(self):
        names = sorted(self.wanted)
        frames = pd.DataFrame(
            {
                "frame_id": names,
                "subject": [name[:4] for name in names],
                "task": "T1",
                "frame": [int(name.rsplit("/", 1)[1]) for name in names],
                "source_file": [f"{name}.png" for name in names],
                "source_frame": -1,
                "part": [f"P{int(name[1:4]) % 3 + 1}" for name in names],
                "au_01": [self.wanted[name]["label"] for name in names],
                "au_02": -1,
            }
        ).astype({"au_01": "Int8", "au_02": "Int8"})
        boxes = small_cache.make_boxes(frames)
        boxes[["x1", "y1", "x2", "y2"]] = BOX
        return frames, boxes

    def _true(self, name, state, view):
        crop = cut_crop(small_cache.draw_image(state[name]["image"]), frame_from_crop(BOX, CROP), CROP)
        image = render_view(crop, view_params(name, view, small_cache.VIEWS), view_px=CROP.size_px)
        return {array: values[0] for array, values in small_cache.extract(image[None]).items()}


def test_a_cache_serves_what_was_published_whatever_happens():
    CacheLife.num_steps = CacheLife.num_killed = 0
    lives = settings(
        max_examples=5,
        stateful_step_count=50,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.explain],
        suppress_health_check=list(HealthCheck),
    )
    for number in itertools.count():
        run_state_machine_as_test(seed(number)(type("CacheLife", (CacheLife,), {})), settings=lives)
        if CacheLife.num_steps >= NUM_STEPS:
            break
    assert CacheLife.num_killed >= NUM_STEPS // 100  # all else is asserted at every step
