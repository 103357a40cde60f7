"""The training loop: accumulation, precision, randomness, and how a run ends when something is wrong."""

from __future__ import annotations

import json
import logging
import os
import signal

import pytest
import torch
from detectron2.engine import HookBase
from toy import ToyLoader, ToyRun, equal

from resnext_det.engine.checkpoint import RunCheckpointer
from resnext_det.engine.dump import read_dump
from resnext_det.engine.logs import start_log
from resnext_det.engine.signals import Stopped
from resnext_det.engine.trainer import LOSS_LIMIT, BadStep, Reason, Trainer, choose_seed
from resnext_det.errors import UserError


def test_accumulated_parts_equal_the_whole_batch(tmp_path):
    whole, parts = ToyRun(tmp_path / "whole"), ToyRun(tmp_path / "parts", accumulate=2)
    for run in (whole, parts):
        run.model.dropout.p = 0.0  # each part draws its own
    ours, theirs = parts.train(3, batch_size=2), whole.train(3, batch_size=4)
    for key in theirs:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-5, atol=1e-7)


def test_resuming_with_accumulation_goes_on_with_the_next_part(tmp_path):
    whole = ToyRun(tmp_path / "whole", accumulate=2).train(5)
    ToyRun(tmp_path / "parts", accumulate=2).train(2)
    assert equal(ToyRun(tmp_path / "parts", accumulate=2).train(5, resume=True), whole)


def test_the_random_numbers_of_a_step_depend_on_seed_iteration_and_part(tmp_path):
    run = ToyRun(tmp_path)
    run.trainer.set_data_loader([torch.ones(2, 4)] * 9)

    def losses(iteration, rank=0):
        run.trainer.set_data_loader([torch.ones(2, 4)])
        torch.manual_seed(999)
        return run.trainer.losses_and_gradients(iteration, rank)[0][0]["loss_a"].item()

    assert losses(3) == losses(3)
    assert len({losses(3), losses(4), losses(5), losses(3, rank=1)}) > 1


def test_the_scale_of_fp16_is_part_of_the_state(tmp_path):
    run = ToyRun(tmp_path, precision="fp16")
    run.trainer.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
    run.train(4)
    assert run.trainer.scaler.get_scale() == 32.0
    resumed = ToyRun(tmp_path, precision="fp16")
    assert resumed.resume() == 3 and resumed.trainer.scaler.get_scale() == 32.0 and resumed.trainer.seed == 5


def test_an_unknown_precision_is_refused():
    with pytest.raises(UserError, match="choose from fp32, bf16, fp16"):
        Trainer(torch.nn.Linear(1, 1), None, seed=0, precision="fp8")


def test_seeds():
    assert choose_seed(7) == 7 and choose_seed(0) == 0
    assert choose_seed(-1) >= 0


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (float("nan"), "the loss is not finite"),
        (float("inf"), "the loss is not finite"),
        (1e4, f"the loss is above {LOSS_LIMIT:g}"),
    ],
)
def test_a_bad_loss_stops_before_the_weights_are_touched_and_is_dumped(tmp_path, value, reason):
    good = ToyRun(tmp_path / "good").train(3)
    run = ToyRun(tmp_path / "run")
    with pytest.raises(UserError, match=reason) as caught:
        run.train(6, poison={3: value})
    assert equal(run.model.state_dict(), good), "the third step was the last"
    folder = tmp_path / "run" / "dump_0000003"
    assert str(folder) in str(caught.value) and "learning rate 0.1" in str(caught.value)
    facts = read_dump(folder)
    assert (facts["iteration"], facts["seed"], facts["learning_rate"]) == (3, 5, [0.1])
    assert set(facts["losses"][0]) == {"loss_a", "loss_b"} and facts["gradient_norms"].keys() == good.keys()
    assert facts["batches"] == [{"batch": 3, "samples": ToyLoader().describe(3)}]
    assert torch.load(folder / "weights.pth", weights_only=True)["model"].keys() == good.keys()
    assert run.resume() == 1, "the checkpoints of before are there"


def test_gradients_that_are_not_finite_stop_too(tmp_path):
    run = ToyRun(tmp_path)
    run.model.linear.weight.register_hook(lambda grad: grad * float("nan"))
    with pytest.raises(UserError, match="the gradients are not finite at iteration 0"):
        run.train(2)


def test_fp16_leaves_such_gradients_to_its_scaler(tmp_path):
    run = ToyRun(tmp_path, precision="fp16")
    handle = run.model.linear.weight.register_hook(lambda grad: grad * float("inf"))
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    seen = []

    class Once(HookBase):
        def after_step(self):
            seen.append(equal(run.model.state_dict(), before))
            if len(seen) == 1:
                handle.remove()

    run.trainer.register_hooks([Once()])
    run.train(2)
    assert seen == [True, False] and run.trainer.scaler.get_scale() == 32768.0


def test_fp16_that_skips_every_step_is_no_training(tmp_path):
    run = ToyRun(tmp_path, precision="fp16")
    run.model.linear.weight.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(UserError, match="every step was skipped, so set SOLVER.PRECISION bf16 or fp32 at iteration 2"):
        run.train(3)


def test_a_run_may_go_on_in_another_precision(tmp_path):
    ToyRun(tmp_path).train(2)
    run = ToyRun(tmp_path, precision="fp16")
    run.train(4, resume=True)
    assert run.trainer.scaler.get_scale() > 0


def test_a_dump_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no process"):
        read_dump(tmp_path)
    run = ToyRun(tmp_path / "run")
    with pytest.raises(UserError):
        run.train(1, poison={0: float("nan")})
    facts = json.loads((tmp_path / "run" / "dump_0000000" / "process_0.json").read_text())
    assert read_dump(tmp_path / "run" / "dump_0000000")["iteration"] == 0
    wrong = [{}, [], 3, {**facts, "losses": 3}, {**facts, "losses": [3]}, {**facts, "iteration": "x"}]
    for content in (*wrong, {key: value for key, value in facts.items() if key != "seed"}):
        (tmp_path / "process_0.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match="process_0.json: .*not what a run has dumped"):
            read_dump(tmp_path)


def test_the_message_names_the_first_images_and_counts_the_rest(tmp_path):
    with pytest.raises(UserError) as caught:
        ToyRun(tmp_path).train(1, batch_size=6, poison={0: float("nan")})
    names = [sample["file_name"] for sample in ToyLoader(6).describe(0)]
    assert f"images {', '.join(names[:4])} and 2 more;" in str(caught.value)


def test_of_several_processes_the_dump_of_the_one_at_fault_is_read(tmp_path):
    for process, loss in enumerate((1.0, None, 3.0)):
        facts = {"iteration": 1, "seed": 1, "process": process, "processes": 3, "accumulate": 1, "precision": "fp32"}
        facts |= {"learning_rate": [], "batches": [], "losses": [{"a": loss}]}
        (tmp_path / f"process_{process}.json").write_text(json.dumps(facts))
    assert read_dump(tmp_path)["process"] == 1
    assert read_dump(tmp_path / "process_2.json")["process"] == 2


class SendSignal(HookBase):
    def __init__(self, iteration, number):
        self.iteration, self.number = iteration, number

    def before_step(self):
        if self.trainer.iter == self.iteration:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_after_the_step_and_the_run_goes_on_as_if_uninterrupted(tmp_path, number):
    whole = ToyRun(tmp_path / "whole", period=100).train(6)
    run = ToyRun(tmp_path / "run", period=100)
    run.trainer.register_hooks([SendSignal(3, number)])
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match=f"{number.name} after iteration 3; saved model_0000003.pth"):
        run.train(6)
    assert signal.getsignal(number) == before
    assert equal(ToyRun(tmp_path / "run", period=100).train(6, resume=True), whole)


def test_what_was_measured_before_a_failure_is_written_down(tmp_path):
    start_log(str(tmp_path))
    run = ToyRun(tmp_path)
    with pytest.raises(UserError):
        run.train(6, poison={3: float("nan")})
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert any(line["iteration"] <= 3 and "loss_a" in line for line in lines)
    log = (tmp_path / "log.txt").read_text()
    assert "the loss is not finite" in log and "Traceback" not in log


def test_a_run_that_has_nothing_left_to_train_saves_what_the_finished_one_did(tmp_path):
    states = []
    for resume in (False, True):
        run = ToyRun(tmp_path)
        run.train(4, resume=resume)
        states.append(run.trainer.state_dict()["iteration"])
    assert states == [4, 4]


def test_a_second_run_in_one_process_logs_every_line_once(tmp_path, capsys):
    logger = logging.getLogger("resnext_det")
    before = list(logger.handlers)
    for run in ("first", "second", "first"):
        start_log(str(tmp_path / run))
        logger.warning("a line of the %s", run)
    assert capsys.readouterr().out.count("a line of the") == 3
    assert (tmp_path / "first" / "log.txt").read_text().count("a line of the first") == 2
    assert "first" not in (tmp_path / "second" / "log.txt").read_text()
    assert len(logger.handlers) <= len(before) + 2


def test_a_signal_in_a_checkpoint_iteration_saves_once_and_later_hooks_still_run(tmp_path, monkeypatch):
    saved, seen = [], []
    save = RunCheckpointer.save

    def noting(self, name, **more):
        saved.append(name)
        save(self, name, **more)

    monkeypatch.setattr(RunCheckpointer, "save", noting)
    run = ToyRun(tmp_path, period=2)

    class Later(HookBase):
        def after_step(self):
            seen.append(self.trainer.iter)

    run.trainer.register_hooks([SendSignal(3, signal.SIGTERM), Later()])
    with pytest.raises(Stopped, match="saved model_0000003.pth"):
        run.train(6)
    assert saved == ["model_0000001", "model_0000003"] and seen == [0, 1, 2, 3]


def test_the_trainer_alone_raises_what_is_wrong_and_writes_nothing(tmp_path):
    run = ToyRun(tmp_path)
    run.trainer.set_data_loader(ToyLoader(poison={0: float("nan")}))
    with pytest.raises(BadStep) as caught:
        run.trainer.train(0, 2)
    assert caught.value.reason is Reason.LOSS_NOT_FINITE and set(caught.value.parts[0]) == {"loss_a", "loss_b"}
    assert not list(tmp_path.iterdir())


def test_a_run_that_has_ended_holds_neither_data_nor_hooks(tmp_path):
    run = ToyRun(tmp_path)
    run.train(1)
    assert run.trainer.data_loader == () and not run.trainer._hooks


def test_momentum_goes_by_the_names_of_the_parameters(caplog):
    """As after another FREEZE_AT or WEIGHT_DECAY_BIAS: other groups, other order, one more parameter."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1))

    def trainer(*groups: list[str]) -> Trainer:
        named = dict(model.named_parameters())
        settings = [{"params": [named[name] for name in group], "weight_decay": i} for i, group in enumerate(groups)]
        return Trainer(model, torch.optim.SGD(settings, 0.1, momentum=0.9), seed=0)

    first = trainer(["0.weight", "2.weight"], ["0.bias", "1.weight"])
    first.iter = 0
    model(torch.ones(4, 2)).sum().backward()
    first.optimizer.step()
    saved = first.state_dict()
    assert saved["parameters"] == [["0.weight", "2.weight"], ["0.bias", "1.weight"]]
    other = trainer(["2.weight", "2.bias", "0.bias"], ["0.weight"])
    other.load_state_dict(saved)
    for name, parameter in model.named_parameters():
        buffer = other.optimizer.state.get(parameter, {}).get("momentum_buffer")
        if name in ("0.weight", "0.bias", "2.weight"):
            assert torch.equal(buffer, first.optimizer.state[parameter]["momentum_buffer"])
        else:
            assert buffer is None
    assert [group["weight_decay"] for group in other.optimizer.param_groups] == [0, 1]
    assert "restored by name for 3, new for 1, no longer used for 1" in caplog.text
