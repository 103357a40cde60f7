"""Commands that are killed, signalled and starved: nothing is damaged, and the same command again ends well.

    python tests/disturb_commands.py kills --number 200
    python tests/disturb_commands.py signals --number 100
    python tests/disturb_commands.py shortages
    python tests/disturb_commands.py workers --number 30

Each command works on a set of images so small that it ends in seconds. A kill comes at a random moment, or at a random
one of the calls by which files get onto the disk and get their names. After each kill every file under a final name is
looked at. Then the same command runs to its end (with ``--resume`` where there is one), and what it has written is
compared with an undisturbed run, byte by byte. Processes are forked from one that has imported everything.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import pickle
import pkgutil
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

import resnext_det  # noqa: F401  (before detectron2, which it may have to fix)

# isort: split
from artifacts.made import about, write
from forked import group_is_empty, start, wait
from PIL import Image
from safetensors import safe_open

from resnext_det.annotations.column_file import _header, map_arrays
from resnext_det.engine.checkpoint import seal_holds
from resnext_det.engine.config import load_config  # noqa: F401  (what commands import is imported before the fork)
from resnext_det.makers.synthetic import classification_config, detection_config

VARIES = re.compile(  # what differs between two undisturbed runs: clocks, processes, paths
    r"log\.txt(\..*)?|metrics\.json|evaluations\.jsonl|events\..*|\.lock|config\.yaml|last_checkpoint|parts|.*\.html"
    r"|\.made_by\.json|inference|earlier_run_\d+|.*\.columns|.*\.onnx|.*\.pt2|detector\.json"
)
FILE_CALLS = ("open", "replace", "rename", "fsync", "unlink", "mkdir", "rmdir")


@dataclass(frozen=True)
class Case:
    """A command line; ``OUT`` in it is replaced by a folder of the run's own, ``IN`` by that of the inputs.

    Attributes:
        again: what the same command gets when it runs again.
        codes: with which it may end after SIGTERM, beside 143.
    """

    line: str
    again: str = ""
    codes: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        return self.line.split()[0]

    def words(self, inputs: Path, out: Path, *, again: bool = False) -> list[str]:
        line = f"{self.line.replace(' KEYS', f' {self.again} KEYS')}" if again else self.line
        places = {"IN": str(inputs), "OUT": str(out)}
        return [re.sub(r"\b(IN|OUT)\b", lambda f: places[f[1]], word) for word in line.replace(" KEYS", "").split()]


KILLED = [
    Case("train --config-file IN/detection.yaml KEYS OUTPUT_DIR OUT SOLVER.CHECKPOINT_PERIOD 2", "--resume", (75,)),
    Case("pretrain --config-file IN/classification.yaml KEYS OUTPUT_DIR OUT", "--resume", (75,)),
    Case("predict --weights IN/run/model_final.pth --score-threshold 0 --output OUT KEYS --input IN/shapes/images",
         "--resume", (75,)),
    Case("export --weights IN/run --output OUT --format onnx"),
    Case("export --weights IN/run --output OUT --format torch"),
    Case("quantize --weights IN/run --output OUT/int8 --calibration IN/shapes/images"),
    Case("convert IN/classes/model_final.pth OUT/weights.pth"),
    Case("convert IN/classes/model_final.pth OUT/weights.safetensors"),
    Case("make-shards IN/train OUT/shards --per-shard 8"),
    Case("make-cifar IN/cifar.tar OUT/cifar"),
    Case("evaluate --gt IN/shapes/instances.json --dt IN/dt.json --report OUT/page.html --out OUT/results.json "
         "--images IN/shapes/images"),
    Case("split IN/shapes/instances.json OUT/split --images IN/shapes/images"),
    Case("convert-data IN/shapes/instances.json OUT/yolo --to yolo --images IN/shapes/images"),
    Case("proposals --config-file IN/detection.yaml --output OUT MODEL.WEIGHTS IN/run/model_final.pth"),
    Case("make-digits --output OUT/digits --train 2 --minival 2"),
    Case("curves IN/run --out OUT/curves.png"),
]  # fmt: skip

OTHERS = [
    Case("check --json IN/odd.json --images IN/shapes/images --fix OUT/fixed.json --fix-drop"),  # replaces no file
    Case("reproduce --table 3 --output OUT --dry-run"),
    Case("transfer --protocol voc0712 --weights IN/classes/model_final.pth --output OUT --dry-run"),
    Case("study IN/study.yaml --output OUT/runs --results OUT/results --quick --device cpu", codes=(75,)),
    Case("quickstart"),
    Case("auto IN/shapes --images IN/shapes/images --weights none --minutes 60 --output OUT", codes=(75,)),
    Case("show --config-file IN/detection.yaml --images 4 --out OUT/seen.png"),
    Case("make-minival --annotations IN/shapes"),
    Case("make-imagenet-val IN/flat IN/labels.txt --out OUT/val"),
    Case("make-imagenet5k IN/train IN/val --extra 0 --out OUT/five"),
    Case("regions --weights IN/run --output OUT/fewer.pth --input IN/shapes/images --risk 0.5"),
    Case("tune --weights IN/run --output OUT --sizes 1 --regions 1"),
    Case("analyze resnext50_32x4d"),
    Case("benchmark grouped-conv --quick --device cpu"),
    Case("doctor"),
]
"""The rest of the commands, which get signals only."""


def make_inputs(folder: Path, iterations: int = 6) -> None:
    """Data, weights and files for every case."""
    folder.mkdir(parents=True, exist_ok=True)
    detection_config(folder, iterations, 8)
    classification_config(folder, 2, 8)
    for place, words in (("run", KILLED[0]), ("classes", KILLED[1])):
        pid = start(words.words(folder, folder / place), folder / "log")
        assert wait(pid) == 0, (folder / "log").read_text()[-2000:]
    instances = json.loads((folder / "shapes" / "instances.json").read_text())
    found = [
        {"image_id": a["image_id"], "category_id": 1, "bbox": a["bbox"], "score": 0.5} for a in instances["annotations"]
    ]
    (folder / "dt.json").write_text(json.dumps(found))
    instances["annotations"][0]["bbox"] = [-5, -5, 20, 20]
    (folder / "odd.json").write_text(json.dumps(instances))
    with tarfile.open(folder / "cifar.tar", "w") as archive:
        batch = {b"data": np.zeros((20, 3072), np.uint8), b"labels": [0, 1] * 10}
        for name, content in (
            ("data_batch_1", batch),
            ("test_batch", batch),
            ("batches.meta", {b"label_names": [b"a", b"b"]}),
        ):
            data = pickle.dumps(content, 2)
            member = tarfile.TarInfo(f"cifar/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    (folder / "study.yaml").write_text("- {name: b, benchmark: grouped-conv}\n")
    (folder / "flat").mkdir()
    for i in (1, 2):
        Image.new("RGB", (8, 8)).save(folder / "flat" / f"ILSVRC2012_val_{i:08d}.JPEG")
    (folder / "labels.txt").write_text("n00000001\nn00000002\n")


def import_all() -> None:
    """What commands import on their way."""
    ours = [module.name for module in pkgutil.walk_packages(resnext_det.__path__, "resnext_det.")]
    for name in (*ours, "onnxscript", "torch.export", "torch._dynamo", "webdataset", "matplotlib.pyplot"):
        if not name.endswith("__main__"):
            with contextlib.suppress(ImportError):
                import_module(name)


def die_at_call(number: int) -> Callable[[], None]:
    """For :func:`start`: SIGKILL at the so many-th call that makes, flushes, names or removes a file; 0 for none."""

    def install() -> None:
        count = [0]

        def watched(call: Callable) -> Callable:
            def wrapper(*args, **kwargs):
                writes = call is not opened or len(args) > 1 and args[1] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR)
                count[0] += bool(writes)
                if writes and count[0] == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **kwargs)

            return wrapper

        opened = os.open
        for name in FILE_CALLS:
            setattr(os, name, watched(getattr(os, name)))
        if not number:
            leave = os._exit

            def tell(code: int) -> None:
                sys.stderr.write(f"\nfile calls: {count[0]}\n")
                sys.stderr.flush()
                leave(code)

            os._exit = tell

    return install


def damaged(folder: Path, whole: Path) -> list[str]:
    """Files under final names that are not what they claim to be."""
    wrong = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()):
        relative = path.relative_to(folder)
        if any(re.fullmatch(r"\..+\.\d+_\w+\.part(\..+)?", part) for part in relative.parts):
            continue
        try:
            if path.suffix == ".pth":
                assert seal_holds(path) is not False
                torch.load(path, weights_only=True)
            elif path.suffix == ".safetensors":
                with safe_open(path, "pt") as file:
                    _ = [file.get_tensor(key) for key in file.keys()]  # noqa: SIM118 (not a dict)
            elif path.suffix in (".columns", ".listing", ".truth", ".report"):
                map_arrays(path, _header(path.read_bytes())[0]["key"])
            elif path.suffix in (".json", ".yaml") and path.name != "metrics.json":
                assert path.read_text().strip()
                if path.suffix == ".json":
                    json.loads(path.read_text())
            elif path.suffix in (".png", ".jpg"):
                Image.open(path).load()
            elif path.suffix == ".html":
                assert path.read_text().rstrip().endswith("</html>")
            elif path.suffix == ".onnx":
                import onnx

                onnx.checker.check_model(str(path))
            elif path.suffix == ".pt2":
                import zipfile

                assert zipfile.ZipFile(path).testzip() is None
            elif (whole / relative).is_file() and not varies(relative):
                assert path.read_bytes() == (whole / relative).read_bytes()
        except Exception as error:
            wrong.append(f"{relative}: {type(error).__name__} {error}"[:200])
    return wrong


def varies(relative: Path) -> bool:
    return any(VARIES.fullmatch(part) for part in relative.parts)


def differing(folder: Path, whole: Path) -> list[str]:
    """Files that are not equal in both, or in one only, where undisturbed runs do not differ."""
    trees = [
        {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*")
         if p.is_file() and not varies(p.relative_to(root))}
        for root in (folder, whole)
    ]  # fmt: skip
    return sorted(name for name in trees[0].keys() | trees[1].keys() if trees[0].get(name) != trees[1].get(name))


def kill_test(folder: Path, number: int, seed: int = 0, cases: Sequence[Case] = KILLED) -> Counter:
    """Counts of kills by command; raises AssertionError where something is damaged, differs or does not end well."""
    chance = random.Random(seed)
    log = folder / "log"
    make_inputs(folder / "in")
    whole, seconds, calls = {}, {}, {}
    counts: Counter = Counter()
    for i, case in enumerate(cases):
        whole[case] = folder / f"whole_{i}"
        log.write_text("")
        pid = start(case.words(folder / "in", folder / "out"), log, die_at_call(0))
        begin = time.monotonic()
        assert wait(pid) == 0, f"{case.line}: {log.read_text()[-2000:]}"
        seconds[case] = time.monotonic() - begin
        calls[case] = int(re.findall(r"file calls: (\d+)", log.read_text())[-1])
        (folder / "out").rename(whole[case])  # checkpoints hold the path
    finds: list[str] = []
    for case in itertools.cycle(cases):
        if sum(counts.values()) >= number or len(finds) > 9:
            break
        try:
            kill_and_finish(folder, case, whole[case], seconds[case], calls[case], chance, counts)
        except AssertionError as error:
            finds.append(str(error))
        print(f"{sum(counts.values())} kills, {len(finds)} finds, {case.name}", file=sys.stderr, flush=True)
        shutil.rmtree(folder / "out", ignore_errors=True)
    assert not finds, "\n".join([str(dict(counts)), *finds])
    return counts


def kill_and_finish(
    folder: Path, case: Case, whole: Path, seconds: float, calls: int, chance: random.Random, counts: Counter
) -> None:
    """Up to three kills of a command, each followed by the same command, and one that nothing disturbs."""
    out, log = folder / "out", folder / "log"
    for _ in range(3):
        again = out.exists()
        at_call = chance.random() < 0.5
        call = chance.randint(1, calls) if at_call else 10**9
        pid = start(case.words(folder / "in", out, again=again), log, die_at_call(call))
        if not at_call:
            time.sleep(chance.uniform(0, seconds))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        code = wait(pid)
        assert code in (0, -signal.SIGKILL), f"{case.line}, again {again}: {code}: {log.read_text()[-2000:]}"
        counts[case.name] += code != 0
        assert group_is_empty(pid), f"{case.line}: a process is left"
        assert not (wrong := damaged(out, whole)), f"{case.line}: {wrong}"
        if code == 0:
            break
    code = wait(start(case.words(folder / "in", out, again=True), log))
    assert code == 0, f"{case.line}, the last time: {code}: {log.read_text()[-2000:]}"
    assert not (wrong := damaged(out, whole)), f"{case.line}: {wrong}"
    assert not (other := differing(out, whole)), f"{case.line}: differ: {other[:5]} of {len(other)}"
    left = [str(p) for p in folder.rglob(".*.part*") if folder / "in" not in p.parents]
    assert not left, f"{case.line}: {left} stay"


def signal_test(folder: Path, number: int, seed: int = 0, cases: Sequence[Case] = (*KILLED, *OTHERS)) -> Counter:
    """Counts of ends by code; raises AssertionError for another code, a traceback, or a process that is left."""
    chance = random.Random(seed)
    make_inputs(folder / "in")
    counts: Counter = Counter()
    os.chdir(folder)
    for i in range(number):
        case = cases[i % len(cases)]
        which = chance.choice([signal.SIGINT, signal.SIGTERM])
        log, out = folder / f"log_{i}", folder / f"out_{i}"
        pid = start(case.words(folder / "in", out), log)
        time.sleep(chance.uniform(0, 2.0))
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if chance.random() < 0.5 else os.kill)(pid, which)
        code, text = wait(pid), log.read_text(errors="replace")
        expected = {0, 2, 130} if which == signal.SIGINT else {0, 2, 143, *case.codes}
        what = f"{case.line}, {which.name}: {code}: {text[-2000:]}"
        assert code in expected and "Traceback" not in text, what
        assert code != 2 or case.name in ("make-minival", "transfer"), what
        assert group_is_empty(pid), f"{what}: a process is left"
        assert not (wrong := damaged(out, out)), f"{what}: {wrong}"
        counts[f"{which.name} {code}"] += 1
        shutil.rmtree(out, ignore_errors=True)
    return counts


def worker_test(folder: Path, number: int, seed: int = 0) -> Counter:
    """Counts of kills by process: one of a prediction shared by three, of weights and of an export in turn.

    A kill comes before the first image, or once a random number of images are done. Five in a row hit each
    prediction, then it runs to its end; its bytes must be those of one process that nobody disturbed.
    """
    chance = random.Random(seed)
    make_inputs(folder / "in")
    write(folder / "export", about(min_size=0))
    (folder / "images").mkdir()
    for i in range(60):
        pixels = np.random.default_rng(i).integers(0, 255, (64, 80, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i:02}.png")
    detectors = [folder / "in/run/model_final.pth", folder / "export"]
    log, counts = folder / "log", Counter()

    def begin(detector: Path, out: Path, *more: object) -> int:
        words = ["predict", "--weights", detector, "--input", folder / "images", "--output", out]
        words += ["--score-threshold", 0, "--resume"]
        return start([*words, *more], log)

    def done(out: Path) -> int:
        return sum(path.read_bytes().count(b"\n") for path in out.glob("parts/*.jsonl"))

    whole = [folder / f"alone_{i}" for i in range(2)]
    for detector, alone in zip(detectors, whole, strict=True):
        assert wait(begin(detector, alone)) == 0, log.read_text()[-2000:]
    for prediction in itertools.count():
        detector, alone = detectors[prediction % 2], whole[prediction % 2]
        out = folder / f"out_{prediction}"
        for _ in range(5):
            process = begin(detector, out, "--workers", 3)
            target = 0 if chance.random() < 0.2 else chance.randint(min(done(out) + 1, 60), 60)
            while not (out / "parts").is_dir() or done(out) < target:
                if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    break
                time.sleep(0.002)
            children = Path(f"/proc/{process}/task/{process}/children")
            family = {"driver": process}
            with contextlib.suppress(OSError):
                workers = [pid for pid in map(int, children.read_text().split()) if b"spawn_main" in command_line(pid)]
                family.update({f"worker {i}": pid for i, pid in enumerate(workers)})
            name = chance.choice([*family, "driver"])
            with contextlib.suppress(ProcessLookupError):
                os.kill(family[name], signal.SIGKILL)
            code = wait(process)
            assert code in (0, 1, -signal.SIGKILL), f"{name}: {code}: {log.read_text()[-2000:]}"
            assert group_is_empty(process), f"{name} was killed: a process is left"
            assert code or not differing(out, alone)
            counts[name] += code != 0
        assert wait(begin(detector, out, "--workers", 3)) == 0, log.read_text()[-2000:]
        assert not (other := differing(out, alone)), other
        if sum(counts.values()) >= number:
            return counts
    raise AssertionError


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system of ``size`` bytes."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def can_mount(folder: Path) -> bool:
    try:
        with small_disk(folder / "try", 4096):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def limited(kind: int, value: int) -> Callable[[], None]:
    """For :func:`start`: a limit of the system; memory counts from what the process has."""

    def set_limit() -> None:
        most = value
        if kind == resource.RLIMIT_AS:
            most += int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        if kind == resource.RLIMIT_FSIZE:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(kind, (most, most))

    return set_limit


SHORTAGES: dict[str, list[Callable[[], None]]] = {
    "memory": [limited(resource.RLIMIT_AS, mib << 20) for mib in (0, 1, 5, 20, 60, 150, 400)],
    "files": [limited(resource.RLIMIT_NOFILE, number) for number in (8, 10, 12, 16, 20, 24, 32, 40)],
    "size of a file": [limited(resource.RLIMIT_FSIZE, size) for size in (0, 100, 1000, 5000, 20_000, 60_000, 200_000)],
}


def shortage_test(
    folder: Path, seed: int = 0, cases: Sequence[Case] = KILLED, most: int = 100
) -> tuple[Counter, list[str]]:
    """Counts of ends by shortage and code; and what was not one line, exit 2, nothing lost, and a good second run."""
    chance = random.Random(seed)
    make_inputs(folder / "in")
    counts: Counter = Counter()
    finds: list[str] = []
    whole = {}
    for i, case in enumerate(cases):
        whole[case] = folder / f"whole_{i}"
        pid = start(case.words(folder / "in", folder / "out"), folder / "log_whole")
        assert wait(pid) == 0, f"{case.line}: {(folder / 'log_whole').read_text()[-2000:]}"
        (folder / "out").rename(whole[case])
    tries = [(case, kind, limit) for case in cases for kind, limits in SHORTAGES.items() for limit in limits]
    if can_mount(folder):
        tries += [(case, "disk", size) for case in cases for size in (0, 1000, 8192, 30_000, 100_000, 300_000)]
    chance.shuffle(tries)
    for i, (case, kind, limit) in enumerate(tries[:most]):
        log, out = folder / f"log_{i}", folder / "out"
        try:
            if kind == "disk":
                with small_disk(out, limit + 4096):
                    code = wait(start(case.words(folder / "in", out), log))
                    wrong = damaged(out, whole[case])
                    subprocess.run(["mount", "-o", "remount,size=64m", out], check=True)
                    second = wait(start(case.words(folder / "in", out, again=code != 0), folder / "log_again"))
                    other = differing(out, whole[case])
            else:
                code = wait(start(case.words(folder / "in", out), log, limit))
                wrong = damaged(out, whole[case])
                second = wait(start(case.words(folder / "in", out, again=code != 0), folder / "log_again"))
                other = differing(out, whole[case])
        except AssertionError as error:
            finds.append(f"{kind}: {case.line}: {error}")
            shutil.rmtree(out, ignore_errors=True)
            continue
        text = log.read_text(errors="replace")
        counts[f"{kind}: {code}"] += 1
        value = limit if kind == "disk" else [c.cell_contents for c in limit.__closure__]
        what = f"{kind} {value}: {case.line}"
        said = text.splitlines()[-1:] or ["error: "] * (kind == "size of a file")  # the log is a file too
        if code not in (0, 2) or "Traceback" in text or code and "error: " not in "".join(said):
            finds.append(f"{what}: {code}: {text[-1500:]}")
        if wrong:
            finds.append(f"{what}: damaged: {wrong}")
        if second or other:
            again = (folder / "log_again").read_text(errors="replace")[-600:]
            finds.append(f"{what}: the second run: {second}, differ {other[:4]}: {again}")
        shutil.rmtree(out, ignore_errors=True)
        print(f"{i + 1} of {most}, {len(finds)} finds: {what}: {code}", file=sys.stderr, flush=True)
    return counts, finds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("kills", "signals", "shortages", "workers"))
    parser.add_argument("--number", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="COMMAND")
    args = parser.parse_args()
    torch.set_num_threads(1)  # forked processes must not inherit a pool of threads
    import_all()
    begin = time.process_time()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        cases = [*KILLED, *OTHERS] if args.what == "signals" else KILLED
        cases = [case for case in cases if not args.only or case.name in args.only]
        if args.what == "shortages":
            counts, finds = shortage_test(folder, args.seed, cases, args.number)
            print("\n".join(finds))
        elif args.what == "workers":
            counts = worker_test(folder, args.number, args.seed)
        else:
            counts = (kill_test if args.what == "kills" else signal_test)(folder, args.number, args.seed, cases)
        print(f"{args.what}: {sum(counts.values())}: {dict(counts)}")
    print(f"{time.process_time() - begin:.0f} s")


if __name__ == "__main__":
    main()
