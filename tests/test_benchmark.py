"""Every benchmark runs on a small problem and its two sides agree; no times are asserted."""

from __future__ import annotations

import json
import pickle
from collections import Counter

import pytest
import torch
from common import ROOT
from forked import call

from resnext_det import UserError, create_model
from resnext_det.benchmarks import BENCHMARKS, grouped_conv, networks
from resnext_det.benchmarks.measure import Rows, Setting
from resnext_det.commands.benchmark import main, run_benchmark
from resnext_det.resnext import ConvNorm


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name != "c4-memory"])
def test_sides_agree(name):
    outcome = run_benchmark(name, Setting(quick=True))
    # Memory is what the system gives and takes back: of a set of a hundred images it may fall.
    times = [value for key, value in outcome["ratios"].items() if not key.endswith((", peak", ", kept"))]
    assert times and all(value > 0 for value in times)
    assert not [label for label, row in outcome.get("rows", {}).items() if "failed" in row]
    for key, value in outcome["agreement"].items():
        if key.endswith("relative"):
            assert value < (0.05 if "bf16" in key or "int8" in key else 1e-4), key
        elif key.startswith("fp32 "):
            assert value < 1e-3, key
    assert outcome["agreement"].get("two runs have equal bits", 1.0) == 1.0


@pytest.mark.parametrize("norm, tolerance", [("BN", 5e-3), ("FrozenBN", 1e-4)])
def test_training_with_an_extra_norm_agrees(norm, tolerance, monkeypatch):
    """Training batch norms take nearly all of this loss's gradient away, which enlarges rounding."""
    monkeypatch.setattr(Setting, "bf16", False)
    agreement = run_benchmark("c4-train", Setting(quick=True, norm=norm, extra_norm=True))["agreement"]
    assert agreement["ours fp32 loss, relative"] < 1e-5 and agreement["two runs have equal bits"] == 1
    assert all(value < tolerance for key, value in agreement.items() if key.endswith("gradient, relative"))


def test_memory_is_measured_in_processes_of_their_own(tmp_path, monkeypatch):
    """What the command hands to them can travel; the measuring itself takes seconds of importing torch in each."""

    class Inline:
        def Pool(self, processes):  # noqa: N802 (multiprocessing's name)
            return self

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def apply(self, function, arguments):
            (setting, threads, side, recompute, bf16) = pickle.loads(pickle.dumps(arguments))
            assert (setting.norm, setting.extra_norm, threads > 0) == ("BN", True, True)
            return 2.0 - side

    monkeypatch.setattr(torch.multiprocessing, "get_context", lambda kind: Inline())
    main(["c4-memory", "--quick", "--norm", "BN", "--extra-norm", "--json", str(tmp_path / "out.json")])
    assert json.loads((tmp_path / "out.json").read_text())["ratios"]["ours fp32 / stock fp32"] == 0.5


def test_tool_writes_json(tmp_path):
    file = tmp_path / "out.json"
    done = call("tools/benchmark.py", "roi-align", "--quick", "--json", file, folder=ROOT)
    assert done.returncode == 0, done.stderr
    assert {"ratios", "agreement", "machine"} <= json.loads(file.read_text()).keys()


class TestRows:
    def test_each_is_kept_as_soon_as_it_is_there(self):
        kept = []
        rows = Rows(Setting(keep=lambda found: kept.append(dict(found)), known={"a": {"seconds": 1.0}}))

        def fails():
            raise RuntimeError("no room\nat all")

        rows.add("a", fails)  # measured before
        rows.add("b", lambda: {"seconds": 2.0})
        rows.add("c", fails)
        assert kept == [{"a": {"seconds": 1.0}, "b": {"seconds": 2.0}}, rows.rows]
        assert rows.rows["c"] == {"failed": "RuntimeError: no room at all"}

    def test_a_broken_gpu_ends_the_run_and_its_row_is_kept(self):
        def fails():
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

        kept = []
        rows = Rows(Setting(keep=lambda found: kept.append(dict(found))))
        with pytest.raises(RuntimeError, match="illegal"):
            rows.add("a", fails)
        assert "illegal" in kept[0]["a"]["failed"]

    def test_none_begins_when_the_time_is_over(self):
        rows = Rows(Setting(ends=0.0, known={"a": {"seconds": 1.0}}))
        for label in "abc":
            rows.add(label, lambda: pytest.fail("measured"))
        assert rows.section() == {"rows": {"a": {"seconds": 1.0}}, "left": {"rows": "2, the same command continues"}}


def test_a_second_call_goes_on_where_the_time_ended(tmp_path, capsys):
    file = tmp_path / "rows.json"
    command = ["grouped-conv", "--quick", "--json", str(file), "--minutes"]
    main([*command, "0"])
    first = json.loads(file.read_text())
    assert first["rows"] == {} and first["left"]
    main([*command, "5"])
    assert "ceilings" in json.loads(file.read_text())["rows"]
    file.write_text(file.read_text().replace('"seconds":', '"seconds": 7, "was":'))
    main(command[:-1])
    rows = json.loads(file.read_text())["rows"]
    assert all(row["seconds"] == 7 for label, row in rows.items() if label != "ceilings"), "measured again"
    with pytest.raises(UserError, match="measured with other settings"):
        main([*command[:-1], "--batch", "3"])
    file.write_text("[]")
    with pytest.raises(UserError, match="not a benchmark's results"):
        main(command[:-1])


def test_layers_of_the_benchmark_are_resnext_101s():
    with torch.device("meta"):
        model = create_model("resnext101_32x4d")
        found = Counter()
        for module in model.modules():
            if isinstance(module, ConvNorm) and module.groups == 32:
                module.register_forward_hook(
                    lambda m, args, y: found.update([(m.weight.shape[1], args[0].shape[-1], m.stride[0])])
                )
        model(torch.zeros(1, 3, 224, 224))
    assert found == dict(zip(grouped_conv.LAYERS, grouped_conv.IN_X101, strict=True))


def test_sums_and_ratios_of_layers():
    rows = {"ceilings": {"copy, bytes per second": 1.0}}
    for width, size, stride in grouped_conv.LAYERS:
        label = f"{32 * width} channels, {size}x{size}, stride {stride}"
        for what in grouped_conv.PASSES:
            for side, seconds in (("NCHW", 3.0), ("channels-last", 2.0), ("ours 16x64", 4.0), ("ours 32x64", 1.0)):
                rows[f"{label}, {what}, {side}"] = {"seconds": seconds, "relative": 0.0}
    outcome = grouped_conv._compare(rows)
    assert len(outcome["ratios"]) == 21 and set(outcome["ratios"].values()) == {2.0}
    layers = sum(grouped_conv.IN_X101) * 3
    assert [round(v / layers, 6) for v in outcome["sums"].values()] == [3.0, 2.0, 1.0]


class TestNetworks:
    def test_every_setting_has_one_row_and_the_most_telling_come_first(self):
        cases = list(networks.all_cases())
        labels = [case.label for case in cases]
        assert len(set(labels)) == len(labels)
        for side in ("ours", "torchvision", "timm"):
            for network in ("resnet50", "resnext50_32x4d", "resnet101", "resnext101_32x4d"):
                for task in ("training", "inference"):
                    same = [c for c in cases if (c.side, c.network, c.task) == (side, network, task)]
                    assert len({(c.dtype, c.memory, c.compiled) for c in same if not c.optimized}) == 8
        assert labels[0].startswith("resnext101_32x4d, ours + kernel, training, bf16") and "resnet101" in labels[1]

    @pytest.mark.parametrize("side", ["torchvision", "timm"])
    def test_peers_are_what_they_are_called(self, side):
        pytest.importorskip(side)
        case = networks.Case("resnext50_32x4d", side, "inference", "fp32", "channels-last")
        assert not networks._impossible(case, Setting())
        model = networks._model(case, "cpu")
        assert sum(p.numel() for p in model.parameters()) == 25_028_904 and type(model).__module__.startswith(side)
        other = networks.Case("resnext101_5x5d", side, "inference", "fp32", "NCHW")
        assert networks._impossible(other, Setting()) == f"{side} has no resnext101_5x5d"

    def test_the_ratio_is_that_of_the_best_settings(self):
        cases = list(networks.all_cases())
        rows = {case.label: {"images_per_second": 100.0} for case in cases if "bf16" in case.label}
        rows["resnext101_32x4d, ours + kernel, training, bf16, channels-last, compiled"] = {"images_per_second": 300.0}
        rows["resnet101, ours, training, bf16, NCHW, eager"] = {"images_per_second": 150.0}
        rows["resnet101, timm, training, bf16, NCHW, eager"] = {"images_per_second": 900.0}
        ratios, best = networks._best(cases, rows)
        assert ratios["resnext101_32x4d / resnet101, training, bf16"] == 2.0
        assert "ours + kernel" in best["resnext101_32x4d / resnet101, training, bf16"]
        assert not [what for what in ratios if "fp32" in what]
