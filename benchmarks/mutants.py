"""Do the tests notice a broken line? Hand-chosen mutations, one at a time, in a temporary copy of this checkout.

    python benchmarks/mutants.py [--only TEXT] [--numbers 1-20]

Each mutation replaces one exact text in one file; the named tests run and should fail. A text that is not there exactly
once stops everything before the first run, so keep the list in step with the code. A run that hangs counts
as caught. Exits with 1 if fewer than 90 % are caught.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).parent.parent
LEAST_CAUGHT_FRAC = 0.9
TIMEOUT_S = 300
LEFT_OUT = (".git", ".venv", "var", "build", "shared", "__pycache__", ".*_cache", "*.egg-info")
TESTS_FAILED, COLLECTION_FAILED = 1, 2
"""Exit codes of pytest for a mutation that is caught."""


class Mutant(NamedTuple):
    """One broken line, and the test files below tests that should notice."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def _of(file: str, *changes: tuple[str, str], tests: str) -> list[Mutant]:
    """Mutations of one file with the same tests, which are given by their names, with spaces between them."""
    return [Mutant(file, old, new, tuple(tests.split())) for old, new in changes]


MUTANTS = [
    # --- store
    *_of(
        "pipeline/store/plan.py",
        ("while block in taken:", "while False:"),
        ("        if is_shuffled:\n", "        if not is_shuffled:\n"),
        ("positions = np.flatnonzero(missing & (parts == part))", "positions = np.flatnonzero(missing)"),
        ("num_dropped=len(old - set(rows.tolist())),", "num_dropped=len(old),"),
        ("    block = first_free_block\n", "    block = 0\n"),
        tests="unit/store/test_plan.py",
    ),
    *_of(
        "pipeline/store/dead_rows.py",
        ("not set(groups) <= set(revision.groups)", "False"),
        ("                unit not in damaged\n", "                True\n"),
        ("                and records.get(unit, files) == files\n", ""),
        ("            if is_whole[block]:\n", "            if False:\n"),
        tests="unit/store/test_dead_rows.py",
    ),
    *_of(
        "pipeline/store/plan.py",
        ("(unit in done and has_rows)", "unit in done"),
        tests="unit/store/test_writer.py",
    ),
    *_of(
        "pipeline/store/lock.py",
        ("    except LockError:\n            continue", "    except LockError:\n            return True"),
        ("path.exists() and file.exists() and ", ""),
        tests="unit/store/test_lock.py",
    ),
    *_of(
        "pipeline/store/shards.py",
        ('"fill_value": "NaN" if dtype.kind == "f" else 0,', '"fill_value": 0,'),
        ('"dimension_names": ["row", *spec.axes],', '"dimension_names": [*spec.axes, "row"],'),
        (
            "return num_read == length == values.nbytes + _CRC_BYTES and _crc_bytes(values) == stored_crc",
            "return num_read == length == values.nbytes + _CRC_BYTES",
        ),
        ("if len(data) < size or _crc_bytes(data[:-_CRC_BYTES]) != data[-_CRC_BYTES:]:", "if len(data) < size:"),
        ("if len(data) < length or _crc_bytes(data[:-_CRC_BYTES]) != data[-_CRC_BYTES:]:", "if len(data) < length:"),
        tests="unit/store/test_shards.py",
    ),
    *_of(
        "pipeline/store/mirror.py",
        ("for path in reversed(copy_paths(folder, name)):", "for path in copy_paths(folder, name):"),
        ("if good is not None and not is_intact(path, is_valid):", "if good is not None and not path.is_file():"),
        (
            "= document.pop(_SEAL) == google_crc32c.value(canonical_json(document))",
            "= bool(document.pop(_SEAL))",
        ),
        tests="unit/store/test_mirror.py",
    ),
    *_of(
        "pipeline/store/lock.py",
        ("_lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, path)", "pass"),
        ("        os.ftruncate(descriptor, 0)\n        os.pwrite", "        os.pwrite"),
        tests="unit/store/test_lock.py",
    ),
    *_of(
        "pipeline/store/prune.py",
        ("            if _is_young(path, grace_s):", "            if False:"),
        ("if number < newest.number and _is_young(folder / manifest_name(number), grace_s):", "if False:"),
        ("            with exclusive(manifest):", "            if manifest:"),
        tests="unit/store/test_prune.py",
    ),
    *_of(
        "pipeline/store/prune.py",
        ("for unit in revision.records} | writer.unpublished", "for unit in revision.records}"),
        tests="integration/test_maintenance.py",
    ),
    *_of(
        "pipeline/store/verify.py",
        ("if file_crc32c(path) != record.crc32c:", "if False:"),
        ("    if size != record.num_bytes:", "    if False:"),
        tests="unit/store/test_verify.py",
    ),
    *_of(
        "pipeline/store/writer.py",
        ("write_bytes_atomically(_journal_path(self.folder, unit), sealed_json(entry))", "pass"),
        tests="integration/test_build.py",
    ),
    *_of(
        "pipeline/store/state.py",
        ('if entry["block_rows"] == state.block_rows and _intact(', "if _intact("),
        tests="unit/store/test_writer.py",
    ),
    *_of(
        "pipeline/store/writer.py",
        ("(self.folder / DAMAGE_NAME).unlink(missing_ok=True)", "pass"),
        tests="unit/store/test_writer.py",
    ),
    *_of(
        "pipeline/store/revisions.py",
        ("if schema != SCHEMA:", "if schema < SCHEMA:"),
        ('write_bytes_atomically(folder / POINTER_NAME, sealed_json({"revision": number}))', "pass"),
        tests="integration/test_build.py",
    ),
    # --- cache
    *_of(
        "pipeline/cache/codecs.py",
        ("codes = (values / scale[:, :, None, None]).round_()", "codes = (values / scale[:, :, None, None])"),
        ("return hm.float().sum(1, keepdim=True).half()", "return hm.float().mean(1, keepdim=True).half()"),
        ('"hm_h2": hm * kept["h2"]}', '"hm_h2": kept["h2"]}'),
        tests="unit/cache/test_codecs.py",
    ),
    *_of(
        "pipeline/cache/crops.py",
        ('.encode() + box_xyxy.astype("<f4").tobytes()', ".encode()"),
        ("has_key = has_face & ~was_unreadable & ~is_missing", "has_key = has_face & ~is_missing"),
        tests="unit/cache/test_crops.py",
    ),
    *_of(
        "pipeline/datasets/video_numbers.py",
        ("if packets.counts_frames or np.isnan(pts).any():", "if np.isnan(pts).any():"),
        ("if grid is None or not has_times:", "if True:"),
        ("or (packets.starts_at_zero and not packets.is_key[0])", ""),
        ("period, start = np.polyfit(numbers, times, 1)", "pass"),
        tests="unit/datasets/test_videos.py",
    ),
    *_of(
        "pipeline/datasets/videos.py",
        ("if frame is None or frame.is_corrupt:", "if frame is None:"),
        ("yield number, frame, position in suspects", "yield number, frame, frame.is_corrupt"),
        ("if packet.size:  #", "if True:  #"),
        tests="unit/datasets/test_videos.py",
    ),
    *_of(
        "pipeline/datasets/images.py",
        ("if height * width > MAX_PIXELS:", "if False:"),
        ("if not _is_harmless(str(error)):", "if False:"),
        ("int(padding[1]) <= _MAX_PADDING_BYTES", "True"),
        ("flip_columns = -1 if orientation in (2, 3, 6, 7) else 1", "flip_columns = 1"),
        tests="unit/datasets/test_images.py",
    ),
    *_of(
        "pipeline/datasets/sources.py",
        (
            "before.get((name, size, time)) or",
            'next((sha for (n, s, _), sha in before.items() if (n, s) == (name, size)), "") or',
        ),
        (
            "before.get((name, size, time)) or",
            'next((sha for (n, _, t), sha in before.items() if (n, t) == (name, time)), "") or',
        ),
        tests="unit/cache/test_crops.py",
    ),
    *_of(
        "pipeline/cache/reader.py",
        ("if view not in range(self.num_views):", "if view > self.num_views:"),
        tests="integration/test_build.py",
    ),
    # --- data sets, protocols
    *_of(
        "pipeline/datasets/bp4d.py",
        ("is_occluded = codes.iloc[:, -1].to_numpy() == 1", "is_occluded = codes.iloc[:, -1].to_numpy() == 2"),
        ("if original is not None or re.search(", "if re.search("),
        ("return [video] * len(frames), (frames - 1).tolist()", "return [video] * len(frames), frames.tolist()"),
        ("odd.add(path, codes[list(rules.aus)])", "pass"),
        tests="unit/datasets",
    ),
    *_of(
        "pipeline/datasets/codes.py",
        ("if not lines or {line.count", "if False and {line.count"),
        ("below = frames[frames < 1]", "below = frames[frames < 0]"),
        ("twice = frames[frames.duplicated(keep=False)]", "twice = frames[:0]"),
        tests="unit/datasets",
    ),
    *_of(
        "pipeline/datasets/files.py",
        ("stem.isascii() and stem.isdecimal()", "stem.isdigit()"),
        ("return stem, suffix.lower()", "return stem, suffix"),
        ("if len(names) > 1:", "if len(names) > 2:"),
        tests="unit/datasets",
    ),
    *_of(
        "pipeline/datasets/frame_list.py",
        ('named["frame"] += 1 - start', 'named["frame"] += start'),
        tests="unit/datasets",
    ),
    *_of(
        "pipeline/datasets/video_counts.py",
        ("abs(difference) > max(", "difference > max("),
        ("beyond.loc[numbers.index] = numbers >= num_frames", "beyond.loc[numbers.index] = numbers > num_frames"),
        tests="unit/datasets",
    ),
    *_of(
        "pipeline/datasets/lost.py",
        ("if len(lost) <= raw.settings", "if len(lost) < raw.settings"),
        ("(source.isna() & is_same_selection)", "source.isna()"),
        tests="unit/refresh/test_index_stage.py",
    ),
    *_of(
        "pipeline/datasets/origin.py",
        ("if changed and not is_edited:", "if False:"),
        ("files.get(name) != known.get(name))", "files.get(name, 0) != known.get(name, files.get(name)))"),
        tests="unit/refresh/test_index_stage.py",
    ),
    *_of(
        "pipeline/datasets/disfa.py",
        ('return [f"{images}/{name}"] * len(frames), frames - 1', 'return [f"{images}/{name}"] * len(frames), frames'),
        ("(frames - 1 + start).tolist()", "(frames - 1).tolist()"),
        tests="unit/datasets",
    ),
    *_of(
        "pipeline/datasets/index.py",
        ("rows = rows[~pd.Series(is_bad, index=rows.index)]", "rows = rows[pd.Series(True, index=rows.index)]"),
        tests="unit/datasets/test_index.py",
    ),
    *_of(
        "pipeline/protocols.py",
        (
            "np.where(is_known, intensities >= min_positive, UNKNOWN)",
            "np.where(is_known, intensities > min_positive, 9)",
        ),
        ("crossing = num_parts[num_parts > 1]", "crossing = num_parts[num_parts > 2]"),
        ("return any(first <= frame <= last for", "return any(first <= frame < last for"),
        tests="unit/test_protocols.py",
    ),
    *_of(
        "pipeline/protocols.py",
        ("return tuple(part for part in PARTS if part != test_part)", "return PARTS"),
        tests="integration/test_trainer.py",
    ),
    # --- faces
    *_of(
        "pipeline/faces/views.py",
        ("flip = np.diag([-1.0 if params.is_flipped else 1.0, 1.0])", "flip = np.diag([1.0, 1.0])"),
        ('_uniforms(f"{settings.seed}/{view}/{frame_id}")', '_uniforms(f"{settings.seed}/{frame_id}")'),
        ("turn = np.array([[cos, -sin], [sin, cos]])", "turn = np.array([[cos, sin], [-sin, cos]])"),
        tests="unit/faces/test_views.py",
    ),
    *_of(
        "pipeline/faces/geometry.py",
        ("(crop_side_px(settings) - 1) / 2", "crop_side_px(settings) / 2"),
        tests="unit/cache/test_crops.py",
    ),
    *_of(
        "pipeline/faces/detect.py",
        ("= (xy + 0.5) * px - 0.5", "= xy * px"),
        ("return 90 * (best + 1) if", "return 90 * best if"),
        ("images + images[-1:] * (batch_size - len(images))", "images"),
        tests="unit/faces/test_detect.py",
    ),
    *_of(
        "pipeline/faces/tracks.py",
        ("for closeness in (self._overlap, self._nearness):", "for closeness in (self._overlap,):"),
        ("                self._tracks.clear()\n", ""),
        ("is_near = moved_sides <= self._settings.max_move_sides and size_ratio", "is_near = size_ratio"),
        ("oldest = frame - self._settings.max_missed_frames - 1", "oldest = frame - self._settings.max_missed_frames"),
        ("return self.box.moved(x * num_frames * share, y * num_frames * share)", "return self.box"),
        ("order = np.lexsort((*", "order = np.arange(len(boxes_N4)) if len(boxes_N4) else np.lexsort((*"),
        tests="unit/faces/test_tracks.py",
    ),
    *_of(
        "pipeline/faces/subjects.py",
        ("- 1 <= max_gap_frames", "- 1 < max_gap_frames"),
        ("& is_between & is_short & is_one_track", "& is_between & is_short"),
        ("totals[before] + weight > totals[-1]", "weight > totals[-1]"),
        ('first=("frame", "min")', 'first=("frame", "max")'),
        ("Status.NO_FACE) & ~has_flaw[rows]", "Status.NO_FACE)"),
        ("if not settings.keeps_implausible:", "if True:"),
        tests="unit/faces/test_subjects.py",
    ),
    *_of(
        "pipeline/refresh/boxes.py",
        ("return boxes if boxes[columns].equals(known.sources[columns]) else None", "return boxes"),
        ('[~faces["frame_id"].isin(seen)]', ""),
        tests="unit/refresh/test_boxes.py",
    ),
    *_of(
        "pipeline/faces/features.py",
        ("return images.float().div(255) if", "return images.float().div(256) if"),
        tests="unit/faces/test_features.py",
    ),
    # --- training
    *_of(
        "pipeline/training/loader.py",
        ("return FIRST_AUGMENTED_VIEW + epoch % num_augmented if", "return FIRST_AUGMENTED_VIEW if"),
        ("np.random.default_rng(epoch).permutation(len(runs))", "range(len(runs))"),
        (
            "np.random.default_rng((self._seed, page.epoch, page.number))",
            "np.random.default_rng((page.epoch, page.number))",
        ),
        ("if view not in (CLEAN_VIEW, FLIPPED_VIEW):", "if False:"),
        tests="unit/training/test_loader.py",
    ),
    *_of(
        "pipeline/training/metrics.py",
        ("answers_NA = probabilities_NA >= threshold", "answers_NA = probabilities_NA > threshold"),
        ('"fn": is_present_NA & ~answers_NA,', '"fn": ~answers_NA,'),
        tests="unit/training/test_metrics.py",
    ),
    *_of(
        "pipeline/training/intervals.py",
        ("1 - ERROR_RATE / 2)", "1 - ERROR_RATE)"),
        ("(num_subjects / max(num_subjects - num_parts, 1))", "1"),
        ("np.maximum.accumulate(p_values[order] * factors)", "p_values[order] * factors"),
        tests="unit/training/test_intervals.py",
    ),
    *_of(
        "pipeline/training/predict.py",
        ("torch.stack(logits).mean(0).sigmoid()", "torch.stack(logits).sum(0).sigmoid()"),
        ("torch.stack(logits).mean(0).sigmoid()", "torch.stack(logits).sigmoid().mean(0)"),
        tests="unit/training/test_predict.py",
    ),
    *_of(
        "pipeline/training/head_training.py",
        ("weight_decay=settings.weight_decay", "weight_decay=0.0"),
        ("every_steps = settings.lr_step_epochs * steps_per_epoch", "every_steps = settings.lr_step_epochs"),
        ("        self._checkpoint.remove()\n", ""),
        tests="integration/test_trainer.py",
    ),
    *_of(
        "pipeline/training/step.py",
        ("is_present_BA & (labels_BA == 0)", "is_present_BA & (labels_BA <= 0)"),
        tests="unit/training/test_live_page.py",
    ),
    *_of(
        "pipeline/training/step.py",
        ("values.copy_(batch[name])", "pass"),
        ("values.clone() for values in self._result", "values for values in self._result"),
        ('self._lr.fill_(self._step.optimiser.param_groups[0]["lr"])', "pass"),
        ("group |= own", "pass"),
        tests="unit/training/test_step.py",
    ),
    *_of(
        "pipeline/training/live_page.py",
        ("took_s * (1 / MAX_SHARE - 1)", "took_s"),
        ("except Exception as error:", "except ValueError as error:"),
        tests="unit/training/test_live_page.py",
    ),
    *_of(
        "pipeline/runtime/checkpoint.py",
        ('part.load_state_dict(state["parts"][name])', "pass"),
        tests="integration/test_trainer.py",
    ),
    *_of(
        "pipeline/training/runs.py",
        ('"labels": file_sha256(catalog.index_path(dataset)),', '"labels": "",'),
        ('"index": cache.index_sha256,', '"index": "",'),
        ("if cache.num_views < num_views:", "if False:"),
        tests="unit/training/test_runs.py",
    ),
    *_of(
        "pipeline/training/run_files.py",
        ("return all((fold / name).is_file() for name in", "return any((fold / name).is_file() for name in"),
        tests="unit/training/test_runs.py",
    ),
    # --- reports
    *_of(
        "pipeline/report/rows.py",
        ("np.std(self.percents, ddof=1)", "np.std(self.percents, ddof=0)"),
        ("2 * num_common", "0 * num_common"),
        tests="unit/report/test_sets.py",
    ),
    *_of(
        "pipeline/report/training_chance.py",
        ("np.maximum(self.runs_V - self.subjects_V, 0.0)", "self.runs_V"),
        ("up_to - total.num_free_V", "up_to"),
        tests="unit/report/test_training_chance.py",
    ),
    *_of(
        "pipeline/report/sets.py",
        ("if one_percent != other_percent", "if True"),
        tests="unit/report/test_sets.py",
    ),
    *_of(
        "pipeline/report/thresholds.py",
        ("for name, table in predictions.items() if name != part]", "for name, table in predictions.items()]"),
        ("bin_N = NUM_BINS - 1 - np.searchsorted", "bin_N = np.searchsorted"),
        ("binned_RA + (exact_A - binned_RA[0])", "binned_RA"),
        ("np.argmin(np.abs(between_T[best] - THRESHOLD))", "0"),
        ('-np.asarray(thresholds, np.float64), side="right")', '-np.asarray(thresholds, np.float64), side="left")'),
        tests="unit/report/test_thresholds.py",
    ),
    *_of(
        "pipeline/report/scored.py",
        ("of_label_NA = np.where(labels_NA == 1,", "of_label_NA = np.where(labels_NA != 1,"),
        ("chosen = order[np.sort(first)[:num_frames]]", "chosen = order[:num_frames]"),
        tests="unit/report/test_page.py",
    ),
    *_of(
        "pipeline/report/page.py",
        ("is_rendered if page.shows_images is None else page.shows_images", "page.shows_images is not False"),
        tests="unit/report/test_page.py",
    ),
    *_of("pipeline/report/rendering.py", ("autoescape=True", "autoescape=False"), tests="unit/report/test_page.py"),
    *_of(
        "pipeline/report/cache_page.py",
        ("is_rendered if shows_images is None else shows_images", "shows_images is not False"),
        tests="unit/report/test_cache_page.py",
    ),
    *_of(
        "pipeline/report/cache_content.py",
        ("blocks[np.linspace(0, len(blocks) - 1, min(len(blocks), _SAMPLED_BLOCKS)).astype(int)]", "blocks[:1]"),
        ('turn = group.groupby("sequence").cumcount()', "turn = pd.Series(range(len(group)), group.index)"),
        tests="unit/report/test_cache_page.py",
    ),
    *_of(
        "flows/page_server.py",
        (" or not path.resolve().is_relative_to(root)", ""),
        (".hostname not in _LOCAL_NAMES", ".hostname in ()"),
        tests="integration/test_pages.py",
    ),
    *_of(
        "flows/commands/base.py",
        (' and not ctx.params.get("dry_run")', ""),
        tests="integration/test_pages.py",
    ),
    # --- refresh
    *_of(
        "pipeline/cache/build.py",
        ("if self.basis is not None and not self._holds_basis:", "if False:"),
        ("UnitTask(unit, rows[unit.block], unit in damaged)", "UnitTask(unit, rows[unit.block], False)"),
        tests="integration/test_build.py integration/test_maintenance.py",
    ),
    *_of(
        "pipeline/cache/units.py",
        ("merged[array.name][is_kept] = loaded.kept[array.name][is_kept]", "pass"),
        ("todo = rows[~is_kept]", "todo = rows"),
        tests="integration/test_build.py integration/test_maintenance.py",
    ),
    *_of(
        "pipeline/runtime/executors.py",
        ("        if is_io_failure(error):\n            raise\n", ""),
        ("        if result.error is None:\n            discard(result.unwrap())\n", "        return\n"),
        tests="unit/runtime/test_executors.py integration/test_build.py",
    ),
    # --- models
    *_of(
        "models/fan_trans.py",
        ("evidence_BAA.topk(self.top_k, dim=1).values.sum(1)", "evidence_BAA.topk(self.top_k, dim=2).values.sum(2)"),
        ("(aus.index(au), source_aus.index(au)) for au in aus", "(aus.index(au), aus.index(au)) for au in aus"),
        ("unflatten(1, self.size).softmax(1)", "unflatten(1, self.size).softmax(2)"),
        tests="unit/models/test_fan_trans.py",
    ),
    *_of(
        "models/head.py",
        ('basis_CK = maps.get(f"{name}_basis")', "basis_CK = None"),
        ("is_multiplied = name in gated and not has_products", "is_multiplied = False"),
        ("draws = not torch.equal(before, torch.random.get_rng_state())", "draws = False"),
        ("if found != (2, inputs.num_aus):", "if False:"),
        ("if not logits.requires_grad:", "if False:"),
        ("if source[name].shape == tensor.shape", "if True"),
        ("return self.branches[-1]", "return self.branches[0]"),
        tests="unit/../integration/test_own_heads.py unit/models/test_own_contract.py",
    ),
    *_of(
        "pipeline/head_class.py",
        ("if _digest_at_import.get(module_name, digest) != digest:", "if False:"),
        ("if not is_local and top not in _distributions():", "if False:"),
        ("if not issubclass(cls, nn.Module):", "if False:"),
        tests="unit/../integration/test_own_heads.py",
    ),
    *_of(
        "pipeline/runtime/random_numbers.py",
        ("torch.random.set_rng_state(self._cpu)", "pass"),
        ("self._cpu = torch.random.get_rng_state()", "pass"),
        ('self._cpu = state_dict["cpu"].cpu()', "pass"),
        tests="unit/runtime/test_random_numbers.py",
    ),
    *_of(
        "pipeline/training/heads.py",
        ('if own.source_sha256 != description["source_sha256"]:', "if False:"),
        ("return BuiltHead(head, description, draws)", "return BuiltHead(head, description, False)"),
        tests="unit/../integration/test_own_heads.py",
    ),
    *_of(
        "models/attention.py",
        ("(logits >= 0).to(soft)", "(logits > 0).to(soft)"),
        ("attention.topk(size - size // 2, dim)", "attention.topk(size // 2, dim)"),
        ("self.scale = (dim // self.num_heads) ** -0.5", "self.scale = dim**-0.5"),
        tests="unit/models/test_attention.py",
    ),
    *_of(
        "models/losses.py",
        (
            "student_BA / temperature, teacher_BA.detach() / temperature",
            "student_BA / temperature, teacher_BA / temperature",
        ),
        ("is_known_BA.sum().clamp_min(1)", "is_known_BA.numel()"),
        ("num_known_A = (labels_NA >= 0).sum(0).double()", "num_known_A = (labels_NA >= -1).sum(0).double()"),
        tests="unit/models/test_losses.py",
    ),
    # --- runtime
    *_of(
        "pipeline/runtime/atomic.py",
        ("        fsync_file(temp)\n", ""),
        ("    fsync_folder(path.parent)\n", ""),
        ("    except OSError as error:\n        discard(temp)\n", "    except OSError as error:\n"),
        tests="unit/runtime/test_atomic.py",
    ),
    *_of(
        "pipeline/runtime/broadcast.py",
        ("min(idle, key=self._next.__getitem__, default=None)", "max(idle, key=self._next.__getitem__, default=None)"),
        ("_MAX_BUFFERED = 3", "_MAX_BUFFERED = 300"),
        tests="unit/runtime/test_broadcast.py",
    ),
    *_of(
        "pipeline/runtime/prefetch.py",
        ("drop(future.result())", "pass"),
        tests="unit/runtime/test_prefetch.py",
    ),
    *_of(
        "pipeline/runtime/prefetch.py",
        ("pool.submit(copy_context().run, function, item)", "pool.submit(function, item)"),
        tests="unit/runtime/test_executors.py",
    ),
    *_of(
        "pipeline/runtime/task_log.py",
        ("    return records is None\n", "    return True\n"),
        tests="unit/runtime/test_executors.py",
    ),
    *_of(
        "pipeline/training/run_files.py",
        ("found > known", "found < known"),
        tests="unit/training/test_versions.py",
    ),
    # --- settings
    *_of(
        "pipeline/fingerprint.py",
        ('features["codec"] = {"sha256": codec_file(settings, catalog).recorded_sha256()}', 'features["codec"] = {}'),
        ('"views": settings.views.model_dump(exclude={"num_views"}),', '"views": settings.views.model_dump(),'),
        tests="unit/test_fingerprint.py",
    ),
    *_of(
        "pipeline/experiments.py",
        ("seeds or file.seeds, path, published=published", "file.seeds, path, published=published"),
        ("merged = merge_settings(settings, override.settings)", "merged = dict(settings)"),
        tests="unit/test_experiments.py",
    ),
    *_of(
        "pipeline/yaml_settings.py",
        ('under.pop("head", None)', "pass"),
        ("if key in keys[:i]:", "if False:"),
        tests="unit/test_yaml_settings.py",
    ),
    *_of(
        "pipeline/catalog.py",
        ("if not found.startswith(self.sha256):", "if False:"),
        ("shipped | added_weights(own.roots.weights) | own.weights", "shipped | own.weights"),
        tests="unit/test_catalog.py",
    ),
    *_of(
        "pipeline/weights/download.py",
        ('headers |= {"Range": f"bytes={kept}-", "If-Range": validator.read_text()}', "pass"),
        ("total is None or int(total[1]) != kept", "total is None"),
        ("if sha256 and not found.startswith(sha256):", "if False:"),
        tests="unit/weights/test_fetch.py",
    ),
    *_of(
        "pipeline/weights/add.py",
        ("if name in taken:", "if False:"),
        ("known_pooling = (published.pooling if published else None) or found.pooling", "known_pooling = None"),
        ("if published.sha256 and not sha256.startswith(published.sha256):", "if False:"),
        tests="unit/../integration/test_added_weights.py",
    ),
    *_of(
        "pipeline/weights/networks.py",
        ("if values.is_floating_point() and not torch.isfinite(values).all():", "if False:"),
        ("torch.zeros_like(v) if name.endswith(_COUNTER) else v", "v"),
        tests="unit/../integration/test_added_weights.py",
    ),
    *_of(
        "pipeline/weights/torchscript.py",
        ("raise pickle.UnpicklingError(", "return super().find_class(module, name) if module else print("),
        tests="integration/test_weight_files.py",
    ),
    *_of(
        "pipeline/tables.py",
        ("if name not in table.columns]", "if False]"),
        tests="unit/test_tables.py",
    ),
]


def mutated(root: Path, mutant: Mutant) -> str:
    """Return the file's text with the mutation; stop where its text is not there exactly once."""
    text = (root / mutant.file).read_text()
    num_found = text.count(mutant.old)
    if num_found != 1:
        sys.exit(f"{mutant.file} has {num_found} times {mutant.old!r}, expected 1; bring benchmarks/mutants.py in step")
    return text.replace(mutant.old, mutant.new)


def run_tests(root: Path, tests: tuple[str, ...]) -> int | None:
    """Return pytest's exit code for test files below tests, None for a run that hangs."""
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    try:
        return subprocess.run(
            [*command, *(f"tests/{test}" for test in tests)],
            cwd=root,
            env=environment,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        return None


def outcome(root: Path, mutant: Mutant) -> str:
    """Break the line in the copy, run its tests, put the file back, and return "caught", "hung" or "SURVIVED"."""
    path = root / mutant.file
    whole = path.read_text()
    path.write_text(mutated(root, mutant))
    try:
        code = run_tests(root, mutant.tests)
    finally:
        path.write_text(whole)
    if code is None:
        return "hung"
    if code not in (0, TESTS_FAILED, COLLECTION_FAILED):
        sys.exit(
            f"pytest {' '.join(mutant.tests)} ended with {code}; fix the names of the tests in benchmarks/mutants.py"
        )
    return "caught" if code else "SURVIVED"


def chosen_mutants(only: str, numbers: str) -> dict[int, Mutant]:
    """Return mutants by number, from 1: those whose file holds `only`, and whose number lies in "FIRST-LAST"."""
    first, _, last = numbers.partition("-")
    here = range(int(first or 1), int(last or first or len(MUTANTS)) + 1)
    return {i: each for i, each in enumerate(MUTANTS, 1) if only in each.file and i in here}


def main() -> None:
    """Run them and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="mutate files with this text in their path")
    parser.add_argument("--numbers", default="", help="mutants FIRST-LAST of the list, from 1")
    arguments = parser.parse_args()
    for mutant in MUTANTS:
        mutated(CHECKOUT, mutant)
    chosen = chosen_mutants(arguments.only, arguments.numbers)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "checkout"
        shutil.copytree(CHECKOUT, root, ignore=shutil.ignore_patterns(*LEFT_OUT))
        num_caught, passing = 0, set()
        for number, mutant in chosen.items():
            if mutant.tests not in passing and run_tests(root, mutant.tests) != 0:
                sys.exit(f"{' '.join(mutant.tests)} fail or hang without a mutation; run them alone, and fix them")
            passing.add(mutant.tests)
            started = time.monotonic()
            found = outcome(root, mutant)
            num_caught += found != "SURVIVED"
            line = f"{mutant.file}: {' '.join(mutant.old.split())[:70]}"
            print(
                f"{number:3d}  {found:8s}  {time.monotonic() - started:5.1f} s  {line}",
                flush=True,
            )
    print(f"{num_caught} of {len(chosen)} caught")
    sys.exit(num_caught < LEAST_CAUGHT_FRAC * len(chosen))


if __name__ == "__main__":
    main()
