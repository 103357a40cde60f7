"""One generator for all commands: valid inputs with one or two fields mutated, run through the command's own ``main``.

Of each run it holds: exit 0, or one line and exit 2; no traceback; no end later than 20 s of CPU time; nothing written
outside the output folder; no more than 2 GB of memory; and where it ends with 0, an oracle finds the same.

``python tests/fuzz/generator.py 0 20000`` makes that many runs in children and prints what they found;
``python tests/fuzz/generator.py --one 137`` shows a run, ``--only check,evaluate`` keeps to some commands.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import hashlib
import io
import json
import logging
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from fuzzing import no_hang  # noqa: E402
from mutations import Inputs  # noqa: E402

MEMORY = 2 << 30
"""Bytes of addresses beyond those of the imported libraries."""
SECONDS = 20.0
WAIT = 240
"""Seconds of a run that waits for something, on a busy machine."""


@dataclass
class Call:
    """One run: where its files are, what it printed, how it ended."""

    number: int
    folder: Path
    inputs: Inputs
    changes: list[str] = field(default_factory=list)
    code: int | None = None
    said: str = ""

    @property
    def given(self) -> Path:
        return self.folder / "in"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def line(self) -> list[str]:
        """The command's arguments."""
        return [word.replace("{in}", str(self.given)).replace("{out}", str(self.out)) for word in self.inputs.line]

    def flag(self, name: str) -> str | None:
        """The value of a flag on the line, the last where it stands twice."""
        places = [i for i, word in enumerate(self.line[:-1]) if word == name]
        return self.line[places[-1] + 1] if places else None

    def writes_in(self) -> bool:
        """Whether its arguments themselves name a place among the inputs to write to."""
        flags = ("--out", "--output", "--fix", "--report", "--results", "OUTPUT_DIR")
        places = [self.flag(flag) or "" for flag in flags] + self.line[2:3]
        return any(place.startswith(str(self.given)) for place in places)


Oracle = Callable[[Call], None]
Kind = Callable[[random.Random, int], tuple[Inputs, Oracle]]
"""Makes valid inputs of a command, and what must hold of a run that ends with 0."""

KINDS: dict[str, tuple[Kind, float]] = {}
"""{name: (maker, share of the runs)}."""


def kind(share: float) -> Callable[[Kind], Kind]:
    """Adds a maker; ``share`` is its part of the runs, in relation to the others."""

    def add(maker: Kind) -> Kind:
        KINDS[maker.__name__] = maker, share
        return maker

    return add


class NoOracle(Exception):
    """The oracle itself cannot read these inputs; its reason."""


class Writes:
    """An audit hook's list of places that were written, made or removed outside the folders allowed."""

    EVENTS = {"os.mkdir": 0, "os.rename": 1, "os.remove": 0, "os.rmdir": 0, "os.link": 1, "os.symlink": 1,
              "os.truncate": 0, "os.chmod": 0, "shutil.rmtree": 0, "os.utime": 0}  # fmt: skip

    def __init__(self) -> None:
        self.allowed: tuple[str, ...] | None = None
        self.found: set[str] = set()
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple) -> None:
        if self.allowed is None:
            return
        if event == "open":
            path, mode, flags = args
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if isinstance(flags, int) else "w" in (mode or "")
        elif event in self.EVENTS:
            path, writes = args[self.EVENTS[event]], True
        else:
            return
        if writes and isinstance(path, str | bytes | os.PathLike):
            place = os.path.realpath(os.fsdecode(path))
            if event == "os.mkdir" and os.path.isdir(place):  # nothing is made
                return
            if not place.startswith(self.allowed):
                self.found.add(f"{event} {place}")


def contents(folder: Path) -> dict[str, object]:
    """What lies in a folder: {path: its bytes' hash, or its kind}."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = hashlib.md5(path.read_bytes(), usedforsecurity=False).digest()
        else:
            found[name] = path.stat().st_mode
    return found


class Runner:
    """Makes and runs calls in this process."""

    def __init__(self, folder: Path, only: list[str] | None = None, *, limited: bool = True) -> None:
        import valid  # noqa: F401  (fills KINDS)

        if only is None or not {"convert", "predict", "train", "pretrain", "proposals", "export"}.isdisjoint(only):
            import valid_models  # noqa: F401  (the commands with torch)

        self.folder = folder
        self.names = [name for name in KINDS if not only or name in only]
        self.shares = [KINDS[name][1] for name in self.names]
        import resnext_det  # noqa: F401  (before detectron2, which it may have to fix)

        # isort: split
        from detectron2.data.datasets import load_coco_json  # noqa: F401  (torch is more than the limit by itself)
        from matplotlib import font_manager  # noqa: F401  (it writes a list of fonts)

        self.err = sys.stderr
        self.writes = Writes()
        sys.stdout, sys.stderr = self.text = io.StringIO(), io.StringIO()
        if limited:
            with open("/proc/self/statm") as file:
                pages = int(file.read().split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, resource.RLIM_INFINITY))

    def run(self, number: int) -> tuple[str, Call, str]:
        """Run call ``number``: (its kind, the call, what is wrong with it or "")."""
        rng = random.Random(number)
        name = rng.choices(self.names, self.shares)[0]
        folder = self.folder / str(number)
        folder.mkdir(parents=True)
        inputs, oracle = KINDS[name][0](rng, number)
        call = Call(number, folder, inputs, list(inputs.notes))
        call.given.mkdir()
        call.out.mkdir()
        for _ in range(rng.choices([0, 1, 2], [8, 3, 0] if inputs.notes else [1, 12, 7])[0]):
            call.changes.append(inputs.mutate(rng))
        inputs.write(call.given)
        try:
            return name, call, self._run(call, oracle) or ""
        finally:
            self.writes.allowed = None
            tempfile.tempdir = None
            os.chdir(self.folder)
            shutil.rmtree(folder, ignore_errors=True)

    def _run(self, call: Call, oracle: Oracle) -> str | None:
        from resnext_det import cli
        from resnext_det.engine.exits import run

        for stream in self.text:
            stream.seek(0)
            stream.truncate()
        (call.folder / "tmp").mkdir()
        tempfile.tempdir = str(call.folder / "tmp")
        before = contents(call.given)
        os.chdir(call.out)
        faulthandler.dump_traceback_later(WAIT, exit=True, file=self.err)
        self.writes.found.clear()
        # Hidden names beside a folder or file are those of what is written aside and renamed.
        own = (str(call.out), str(call.folder / "tmp"), f"{call.folder}/.", "/dev/", "/proc/")
        own += (os.path.expanduser("~"),) if "~" in call.line else ()
        free = call.inputs.writes_in or call.writes_in()
        self.writes.allowed = own + ((str(call.given),) if free else ())
        trouble = None
        try:
            with no_hang(SECONDS):
                run(lambda: cli.call(call.line[0], call.line[1:]))
            call.code = 0
        except SystemExit as left:
            call.code = left.code if isinstance(left.code, int) else 0 if left.code is None else 1
        except BaseException as error:
            last = traceback.extract_tb(error.__traceback__)
            ours = [f for f in last if "resnext_det" in f.filename] or last
            place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
            trouble = f"{type(error).__name__} at {place}: {' '.join(str(error).split())[:300]}"
        finally:
            self.writes.allowed = None
            faulthandler.cancel_dump_traceback_later()
        call.said = self.text[0].getvalue() + self.text[1].getvalue()
        if trouble:
            return trouble
        if self.writes.found:
            return f"writes outside: {sorted(self.writes.found)[0]}"
        after = contents(call.given)
        if not free and after != before or {n for n in before if n not in after}:
            return "changed its inputs"
        lines = self.text[1].getvalue().splitlines()
        if "Traceback (most recent call last)" in call.said:
            return f"prints a traceback, exit {call.code}"
        if call.code == 0:
            try:
                with no_hang(60):
                    oracle(call)
            except NoOracle as error:
                call.changes.append(f"no oracle: {error}")
            except MemoryError:
                call.changes.append("no oracle: memory")
            except Exception as error:
                kind_of = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
                return f"oracle: {kind_of}{' '.join(str(error).split())[:400]}"
            return None
        if call.code not in call.inputs.codes:
            return f"exit {call.code}"
        errors = [line for line in lines if line.startswith("error: ")]
        if call.code == 2 and len(errors) != 1 and not any(line.startswith("usage: ") for line in lines):
            return f"{len(errors)} error lines: {errors[:2]}"
        return None


def attack(numbers: range, folder: Path, only: list[str] | None = None) -> Iterator[dict]:
    """Run the calls of these numbers; yields {number, kind, code, changes, wrong} of each."""
    runner = Runner(folder, only or None)
    for number in numbers:
        try:
            name, call, wrong = runner.run(number)
        except BaseException:
            sys.stderr = runner.err
            raise
        yield {"number": number, "kind": name, "code": call.code, "changes": call.changes, "wrong": wrong,
               "said": call.said.splitlines()[-1][:300] if call.said.strip() else ""}  # fmt: skip


def child(numbers: range, only: list[str] | None) -> Iterator[dict]:
    """:func:`attack` in a process of its own; what ends that is a result too."""
    first = numbers.start
    while first < numbers.stop:
        with tempfile.TemporaryDirectory(prefix="fuzz_") as folder:
            words = [str(first), str(numbers.stop - first), "--child", folder, "--only", ",".join(only or [])]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "HOME": folder,
                           "MPLCONFIGDIR": os.path.join(tempfile.gettempdir(), "fuzz_mpl")}  # fmt: skip
            with tempfile.TemporaryFile("w+") as errors:
                process = subprocess.Popen(
                    [sys.executable, __file__, *words],
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    env=environment,
                )
                for line in process.stdout:
                    if not line.startswith('{"number"'):  # of a command's own child
                        continue
                    record = json.loads(line)
                    first = record["number"] + 1
                    yield record
                code = process.wait()
                errors.seek(0)
                if code:
                    said = errors.read()[-1500:]
                    yield {
                        "number": first,
                        "kind": "?",
                        "code": code,
                        "changes": [],
                        "wrong": f"process: {said}",
                        "said": "",
                    }
                    first += 1


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("first", type=int, nargs="?", default=0)
    parser.add_argument("count", type=int, nargs="?", default=100)
    parser.add_argument("--only", default="", help="kinds, by comma")
    parser.add_argument("--child", metavar="FOLDER")
    parser.add_argument("--one", type=int, metavar="NUMBER")
    parser.add_argument("--out", metavar="FILE", help="a line of JSON for each run")
    args = parser.parse_args()
    only = [name for name in args.only.split(",") if name]
    numbers = range(args.first, args.first + args.count)
    if args.child:
        runner_out = sys.stdout
        for record in attack(numbers, Path(args.child), only):
            print(json.dumps(record), file=runner_out, flush=True)
        return
    if args.one is not None:
        out = sys.stdout
        with tempfile.TemporaryDirectory(prefix="fuzz_") as folder:
            runner = Runner(Path(folder), only or None)
            with contextlib.suppress(ImportError):
                logging.disable(logging.NOTSET)
            name, call, wrong = runner.run(args.one)
        print(name, call.line, call.changes, call.code, call.said[-3000:], wrong, sep="\n", file=out)
        return
    counts: Counter[str] = Counter()
    found: Counter[str] = Counter()
    with open(args.out or os.devnull, "a", encoding="utf-8") as file:
        for start in range(args.first, args.first + args.count, 1000):
            for record in child(range(start, min(start + 1000, args.first + args.count)), only):
                counts[f"{record['kind']} exit {record['code']}"] += 1
                file.write(json.dumps(record) + "\n")
                file.flush()
                if record["wrong"]:
                    found[f"{record['kind']}: {record['wrong'][:90]}"] += 1
                    print(json.dumps(record), flush=True)
    for name, number in [*sorted(counts.items()), *found.most_common()]:
        print(f"{number:7d} {name}")


if __name__ == "__main__":
    import generator  # the module that the makers add themselves to

    generator.main()
