"""A study: steps in order and side by side, stopped by the clock, resumed, collected into small files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import textwrap
import time
from collections import deque
from pathlib import Path

import pytest
from common import ROOT
from PIL import Image

import resnext_det  # noqa: F401  (before detectron2, which it may have to fix)

# isort: split
from resnext_det import UserError
from resnext_det.classification.config import check_config, get_config
from resnext_det.classification.train import Plan
from resnext_det.commands.study import main
from resnext_det.engine.config import load_config
from resnext_det.engine.signals import Stopped
from resnext_det.paper import study
from resnext_det.paper.reproduce import Command
from resnext_det.paper.study import Chain, Runner, chains_of, read_study

ONE_GPU = ROOT / "configs" / "reproduce" / "one_gpu.yaml"


class Script(Command):
    """A command that runs a few lines of Python instead of a tool; ``options[0]`` holds them."""

    def line(self):
        return [sys.executable, "-c", textwrap.dedent(self.options[0])]


def chain(folder: Path, text: str, needs: Path | None = None) -> Chain:
    """A chain of one script, which has done its work when ``folder/made`` is there."""
    folder.mkdir(exist_ok=True)
    command = Script("tool.py", ROOT / "none.yaml", folder, (text,), (folder / "made",))
    return Chain("step", folder.name, deque([command]), needs, command)


def writes(folder: Path, before: str = "") -> str:
    return f"import signal, sys, time, pathlib\n{before}\npathlib.Path({str(folder / 'made')!r}).touch()\n"


FOREVER = "signal.signal(signal.SIGTERM, lambda *a: sys.exit(75))\nopen({ready!r}, 'w').close()\ntime.sleep(60)"


class TestRunner:
    def test_chains_run_side_by_side_and_once(self, tmp_path):
        # Each waits for a sign of the other, so one after the other they would never end.
        a, b = tmp_path / "a", tmp_path / "b"
        wait = "while not pathlib.Path({0!r}).exists(): time.sleep(.02)"
        start = "pathlib.Path({0!r}).touch()\n"
        texts = [start.format(str(x / "on")) + wait.format(str(y / "on")) for x, y in ((a, b), (b, a))]
        chains = [chain(f, writes(f, text)) for f, text in zip((a, b), texts, strict=True)]
        assert Runner(2, time.monotonic() + 60).run(chains)
        again = [chain(f, "import sys; sys.exit(3)") for f in (a, b)]
        for c in again:
            (tmp_path / c.name / "reproduce.json").unlink()  # it names the script, which is another one now
        assert Runner(1, time.monotonic() + 60).run(again)

    def test_what_needs_weights_waits_for_them(self, tmp_path):
        first, second = tmp_path / "first", tmp_path / "second"
        look = f"assert pathlib.Path({str(first / 'made')!r}).exists()"
        chains = [chain(second, writes(second, look), needs=first / "made"), chain(first, writes(first))]
        assert Runner(2, time.monotonic() + 60).run(chains) and not chains[0].failed

    def test_a_failure_stops_only_what_needs_it(self, tmp_path, capsys):
        bad, child, good = (tmp_path / name for name in ("bad", "child", "good"))
        chains = [
            chain(bad, "import sys; print('the reason'); sys.exit(2)"),
            chain(child, writes(child), needs=bad / "made"),
            chain(good, writes(good)),
        ]
        assert not Runner(1, time.monotonic() + 60).run(chains)
        assert "ended with code 2" in chains[0].failed and "is missing" in chains[1].failed
        assert (bad / "output.txt").read_text() == "the reason\n" and (good / "made").exists()

    def test_when_the_time_is_over_all_get_the_signal_and_may_save(self, tmp_path):
        folder = tmp_path / "a"
        ready = folder / "ready"
        runner = Runner(1, float("inf"))
        one = chain(folder, writes(folder, FOREVER.format(ready=str(ready))))
        poll = study.time.sleep

        def tick(seconds):
            if ready.exists():
                runner.ends = 0.0
            poll(seconds)

        study.time.sleep, begin = tick, time.monotonic()
        try:
            assert not runner.run([one])
        finally:
            study.time.sleep = poll
        assert one.process.returncode == 75 and not one.failed and time.monotonic() - begin < 50

    def test_a_signal_to_the_study_reaches_all(self, tmp_path, monkeypatch):
        folder = tmp_path / "a"
        ready = folder / "ready"
        one = chain(folder, writes(folder, FOREVER.format(ready=str(ready))))
        poll = time.sleep

        def tick(seconds):
            if ready.exists():
                ready.unlink()  # a second signal could reach a process that is already leaving
                os.kill(os.getpid(), signal.SIGTERM)
            poll(seconds)

        monkeypatch.setattr(study.time, "sleep", tick)
        assert not Runner(1, float("inf")).run([one])
        assert one.process.returncode == 75

    def test_no_run_outlives_an_error_of_the_study(self, tmp_path):
        one = chain(tmp_path / "a", writes(tmp_path / "a", FOREVER.format(ready=str(tmp_path / "ready"))))
        two = chain(tmp_path / "b", writes(tmp_path / "b"))

        def full():
            raise OSError("no space left")

        with pytest.raises(OSError, match="no space left"):
            Runner(2, float("inf"), full).run([one, two])
        assert one.process.poll() is not None


class TestFile:
    def test_the_studies_of_the_package_name_what_there_is(self):
        steps = read_study(str(ONE_GPU))
        assert {step.benchmark for step in steps} >= {"grouped-conv", "networks", "c4-inference", "c4-train"}
        for step in steps:
            assert not step.settings or (ONE_GPU.parent / step.settings).is_file()

    def test_the_study_of_one_core_has_settings_that_pretraining_takes(self, tmp_path, monkeypatch):
        """And each of its steps differs from the others."""
        monkeypatch.chdir(tmp_path)
        seen = []
        for step in read_study(str(ONE_GPU.with_name("one_core.yaml"))):
            assert (ONE_GPU.parent / step.settings).is_file() and len(step.seeds) == 3
            if step.table == 8:
                continue
            for split in ("train", "val"):
                Path(step.data, split).mkdir(parents=True, exist_ok=True)
            for one in chains_of(step, Path("o"), ONE_GPU.parent):
                (command,) = one.commands
                cfg = load_config(get_config(), str(command.config), list(command.options))
                check_config(cfg)
                Plan.of(cfg, 5000, processes=1)
                cfg.OUTPUT_DIR = ""
                seen.append(cfg.dump())
        assert len(seen) == len(set(seen)) == 21

    @pytest.mark.parametrize(
        "text, message",
        [
            ("- {name: a, tabel: 3}", "unknown key tabel; did you mean table"),
            ("- {name: a}", "needs either benchmark or table"),
            ("- {name: a, benchmark: c4-trane}", "no benchmark c4-trane; did you mean c4-train"),
            ("- {name: a, table: 12}", "no table 12"),
            ("- {name: a, table: 8, rows: [R5]}", "row R5 is not in table 8"),
            ("- {name: a, table: 8, protocol: both}", "choose from paper, joint"),
            ("- {name: a, table: 8}\n- {name: a, table: 3}", "two steps are called a"),
            ("a: 3", "must be a list of steps"),
            ("[", "not YAML"),
        ],
    )
    def test_mistakes(self, tmp_path, text, message):
        (tmp_path / "s.yaml").write_text(text)
        with pytest.raises(UserError, match=message):
            read_study(str(tmp_path / "s.yaml"))


def write_images(folder: Path, per_class: int) -> None:
    for split in ("train", "test"):
        for number, color in enumerate(("red", "blue")):
            target = folder / split / f"class{number}"
            target.mkdir(parents=True)
            for i in range(per_class):
                Image.new("RGB", (32, 32), color).save(target / f"{i}.png")


def test_finished_elsewhere_is_not_run_again_unless_its_weights_are_wanted(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "_machine", lambda: {})
    weights = tmp_path / "a" / "made"
    first, second = chain(tmp_path / "a", ""), chain(tmp_path / "b", "", needs=weights)
    known = {c.name: {"finished": True, "command": study._command_of(c.last)} for c in (first, second)}
    chains = [first, second]
    study.drop_known(chains, known)
    assert not first.commands and not second.commands
    first, second = chain(tmp_path / "a", ""), chain(tmp_path / "b", "", needs=weights)
    study.drop_known([first, second], {"a": known["a"]})
    assert first.commands and second.commands, "b needs the weights of a, which are not here"
    second.commands.clear()
    study.drop_known([first, second], {"a": {**known["a"], "command": "another"}})
    assert first.commands


def test_what_an_earlier_call_has_finished_keeps_its_machine(tmp_path, monkeypatch):
    step = study.Step("step", table=3, rows=["resnet50"])
    one = chain(tmp_path / "a", "")
    one.name = study._name(step, "resnet50", 0)
    for name in ("made", "results.json", "metrics.json"):
        (tmp_path / "a" / name).write_text('{"top1_error": 1.0}\n{"total_lo')  # its last line is being written
    (tmp_path / "a" / "results.json").write_text('{"top1_error": 1.0}')
    for machine in ("first", "second"):
        monkeypatch.setattr(study, "_machine", lambda machine=machine: machine)
        study.collect([step], [one], tmp_path)
    run = study.read_runs(tmp_path)[one.name]
    assert run["finished"] and run["machine"] == "first" and run["results"] == {"top1_error": 1.0}


class TestBenchmark:
    def study(self, tmp_path, monkeypatch, line: str) -> list[str]:
        (tmp_path / "s.yaml").write_text("- {name: a, benchmark: c4-train}")
        monkeypatch.setattr(study, "command_line", lambda name: [sys.executable, "-c", line])
        return [str(tmp_path / "s.yaml"), "--results", str(tmp_path / "results"), "--device", "cpu"]

    def test_one_that_fails_is_a_failure_and_no_matter_of_time(self, tmp_path, monkeypatch):
        with pytest.raises(UserError, match=r"a: benchmark ended with code 3, see above \(1 such\)"):
            main(self.study(tmp_path, monkeypatch, "import sys; sys.exit(3)"))

    def test_a_signal_ends_it_too(self, tmp_path, monkeypatch):
        file = tmp_path / "pid"
        line = f"import os, signal, time\nopen({str(file)!r}, 'w').write(str(os.getpid()))\n"
        line += "os.kill(os.getppid(), signal.SIGTERM)\ntime.sleep(60)"
        with pytest.raises(Stopped, match="the same command continues"):
            main(self.study(tmp_path, monkeypatch, line))
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.read_text()), 0)


def test_thinned_curves_keep_their_end():
    points = [{"iteration": i} for i in range(1234)]
    thinned = study._thinned(points)
    assert len(thinned) <= study.CURVE and thinned[-1] == points[-1]
    assert [p["iteration"] for p in thinned] == sorted(p["iteration"] for p in thinned)
    assert study._thinned(points[:3]) == points[:3] and study._thinned([]) == []


@pytest.mark.slow
def test_a_miniature_in_stretches(tmp_path, capfd, monkeypatch):
    """Pretraining stopped by the clock, resumed, its weights fine-tuned, all collected: with real tools, on the CPU."""
    from tiny import write_paper_inputs

    write_images(tmp_path / "classes", 8)
    settings = write_paper_inputs(tmp_path).replace("DEPTH: 14", "DEPTH: 50")
    (tmp_path / "detection.yaml").write_text(settings)
    (tmp_path / "classification.yaml").write_text(
        "MODEL: {DEVICE: cpu}\nDATALOADER: {NUM_WORKERS: 0}\nINPUT: {CROP_SIZE: 32}\n"
        "TEST: {SHORT_SIDE: 32, CROP_SIZE: 32}\n"
        "SOLVER: {EPOCHS: 4000, STEPS: [2], IMS_PER_BATCH: 8, CHECKPOINT_PERIOD: 1000}\n"
    )
    long = f"""
- name: classes
  table: 3
  rows: [resnext50_32x4d]
  width: 1/4
  data: {tmp_path}/classes
  settings: classification.yaml
"""
    (tmp_path / "study.yaml").write_text(long)
    out, results = tmp_path / "out", tmp_path / "results"
    command = [str(tmp_path / "study.yaml"), "--output", str(out), "--results", str(results)]
    poll, kept = time.sleep, results / "runs.json"
    monkeypatch.setattr(study, "KEEP", 0.0)

    def tick(seconds):
        if kept.is_file() and "top1_error" in kept.read_text():  # while it runs: a cut machine would lose nothing
            os.kill(os.getpid(), signal.SIGTERM)
        poll(seconds)

    with monkeypatch.context() as patch, pytest.raises(Stopped, match="the same command continues"):
        patch.setattr(study.time, "sleep", tick)
        main(command)
    run = json.loads((results / "runs.json").read_text())["classes, resnext50_32x4d, seed 0"]
    assert run["training"][-1]["total_loss"] > 0 and "RES2" in run["config"]
    assert not run["finished"] and "stopped by SIGTERM" in " ".join(run["log"])
    assert "0 of 1; one unfinished at epoch" in (results / "tables.md").read_text()
    stopped_at = int(next((out / "classes").rglob("last_checkpoint")).read_text()[len("model_") : -len(".pth")])
    (tmp_path / "classification.yaml").write_text(
        (tmp_path / "classification.yaml").read_text().replace("4000", str(stopped_at // 2 + 3))
    )
    for record in (out / "classes").rglob("reproduce.json"):
        record.unlink()  # the settings were changed on purpose: the end comes sooner
    weights = "{output}/classes/imagenet/resnext50_32x4d/seed{seed}/model_final.pth"
    (tmp_path / "study.yaml").write_text(
        long
        + f"""
- name: detection
  table: 8
  protocol: joint
  rows: [X50]
  width: 1/4
  data: {tmp_path}/set
  settings: detection.yaml
  weights: {{X50: "{weights}"}}
- {{name: layers, benchmark: grouped-conv, minutes: 5}}
"""
    )
    capfd.readouterr()
    main([*command, "--quick", "--device", "cpu"])
    out_text = capfd.readouterr().out
    runs = json.loads((results / "runs.json").read_text())
    assert all(run["finished"] for run in runs.values()) and len(runs) == 2
    assert runs["detection, X50, seed 0"]["results"].keys() >= {"AP", "AP50"}
    log = next((out / "classes").rglob("log.txt")).read_text()
    assert f"iteration {stopped_at + 1}" in log or f"{stopped_at:07d}" in log, "it was resumed"
    assert "1 of 1" in out_text and json.loads((results / "layers.json").read_text())["rows"]
    main([*command, "--quick", "--device", "cpu"])
    assert "train_net.py in" not in capfd.readouterr().out, "nothing is run again"
    shutil.rmtree(out)  # another machine, which has the results alone
    main([*command, "--quick", "--device", "cpu"])
    assert json.loads((results / "runs.json").read_text()) == runs and not (out / "detection").exists()
