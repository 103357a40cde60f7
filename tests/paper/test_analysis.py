"""Tables 1 and 2 of the paper, and torchvision's networks counted by the same rule."""

from __future__ import annotations

import pytest
import torch
import torchvision
from fvcore.nn import FlopCountAnalysis

from resnext_det import UserError
from resnext_det.commands.analyze import main
from resnext_det.paper.analysis import analyze, table_2, totals


@pytest.mark.parametrize(
    ("name", "millions", "billions", "template"),
    [
        ("resnet50", 25.5, 4.1, "[1x1, 128; 3x3, 128; 1x1, 512] x 4"),
        ("resnext50_32x4d", 25.0, 4.2, "[1x1, 256; 3x3, 256, C=32; 1x1, 512] x 4"),
    ],
)
def test_table_1(name: str, millions: float, billions: float, template: str) -> None:
    rows = analyze(name)
    parameters, multiply_adds = totals(rows)
    assert parameters / 1e6 == pytest.approx(millions, rel=0.01)
    assert multiply_adds / 1e9 == pytest.approx(billions, rel=0.01)
    assert [(row.stage, row.output) for row in rows] == [
        ("conv1", 112), ("res2", 56), ("res3", 28), ("res4", 14), ("res5", 7), ("fc", 1),
    ]  # fmt: skip
    assert rows[2].template == template

    theirs = getattr(torchvision.models, name)().eval()
    assert parameters == sum(p.numel() for p in theirs.parameters())
    counter = FlopCountAnalysis(theirs, torch.zeros(1, 3, 224, 224)).unsupported_ops_warnings(False)
    assert multiply_adds == sum(counter.by_operator()[operator] for operator in ("conv", "linear"))


def test_table_2_prints_the_papers_widths(capsys) -> None:
    main(["--table", "2"])
    printed = capsys.readouterr().out
    assert printed == table_2() + "\n"
    rows = [[int(word.replace(",", "")) for word in line.split()] for line in printed.splitlines()[1:]]
    assert [row[:3] for row in rows] == [[1, 64, 64], [2, 40, 80], [4, 24, 96], [8, 14, 112], [32, 4, 128]]
    assert all(abs(row[3] - 70_000) < 2_000 for row in rows)
    assert all(row[4] == row[3] * 56 * 56 and round(row[4] / 1e9, 2) in (0.22, 0.23) for row in rows)


def test_figure_4_is_a_command(capsys) -> None:
    main(["--figure", "4"])
    paths, dense, difference = capsys.readouterr().out.splitlines()
    assert paths.rpartition(": ")[2] == dense.rpartition(": ")[2] == f"{2 * 9 * 64 * 128:,} weights"
    assert float(difference.split("relative: ")[1].split(";")[0]) < 1e-14


def test_a_small_network_by_its_options(capsys) -> None:
    main(["resnext29_8x64d_cifar", "--num-classes", "10"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == ["conv1", "32x32"] and lines[-1].split()[1] == "34,426,698"
    with pytest.raises(UserError, match="name a network"):
        main([])
