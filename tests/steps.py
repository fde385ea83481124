"""Names for the changes that a process makes to the disk, so that it can be killed before a chosen one."""

import os
import re
import signal
from pathlib import Path

RENAMES = ("rename", "unlink")
ALL = (*RENAMES, "fsync")


def step_name(path) -> str:
    """A file's kind: its folder and name without numbers, fingerprints and random marks."""
    path = Path(path)
    name = re.sub(r"^\.tmp-[0-9a-f]{8}-", "temp ", path.name)
    return re.sub(r"[0-9a-f]{16}|\d+", "N", f"{path.parent.name}/{name}")


def kind_of(step: str) -> str:
    """A step's kind: its name without its number."""
    return step.split("#", maxsplit=1)[0]


def watch_steps(*, kill_before: str | None = None, trace: Path | None = None, verbs=ALL) -> None:
    """Name each change to the disk, number those of one name, and die before the one that is asked for.

    Names are such as "rename journal/N.view_N.json#3". With `trace`, they are written to a file, one per line.
    """
    counts: dict[str, int] = {}
    file = None if trace is None else trace.open("a")

    def wrap(verb, change, place):
        def watched(*arguments, **more):
            name = f"{verb} {step_name(place(*arguments))}"
            counts[name] = counts.get(name, 0) + 1
            if file is not None:
                file.write(f"{name}#{counts[name]}\n")
                file.flush()
            if f"{name}#{counts[name]}" == kill_before:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*arguments, **more)

        return watched

    if "rename" in verbs:
        Path.replace = wrap("rename", Path.replace, lambda old, new: new)
    if "unlink" in verbs:
        Path.unlink = wrap("unlink", Path.unlink, lambda path, *_: path)
    if "fsync" in verbs:
        os.fsync = wrap("fsync", os.fsync, lambda descriptor: Path(f"/proc/self/fd/{descriptor}").readlink())
