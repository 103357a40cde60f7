"""Layouts of checkpoints as they are published: the trunk gives torchvision's features, or the file is refused.

The layouts are those of the projects' own code; the tensors are random.
"""

from __future__ import annotations

import pytest
import torch
from helpers import randomise_norms, relative_error
from torchvision.models.resnet import Bottleneck, ResNet

from resnext_det import UserError, compat, create_model
from resnext_det.commands.convert import main
from resnext_det.weights import load_strictly, read_checkpoint

IMAGE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def network(seed: int = 0) -> ResNet:
    torch.manual_seed(seed)
    return randomise_norms(ResNet(Bottleneck, [1, 1, 1, 1], num_classes=7))


@pytest.fixture(scope="module")
def theirs() -> ResNet:
    return network()


def under(prefix: str, model: ResNet, fc: bool = False) -> dict:
    return {prefix + name: value for name, value in model.state_dict().items() if fc or not name.startswith("fc.")}


def mlp(prefix: str) -> dict:
    return {f"{prefix}{layer}.{leaf}": torch.ones(4, 4) for layer in (0, 2) for leaf in ("weight", "bias")}


def children(prefix: str, model: ResNet) -> dict:
    """As ``nn.Sequential(*list(resnet.children())[:-1])`` names them."""
    places = {name: str(i) for i, (name, _) in enumerate(model.named_children())}
    return {
        f"{prefix}{places[name.split('.')[0]]}.{name.partition('.')[2]}": value
        for name, value in under("", model).items()
    }


def layouts(m: ResNet) -> dict[str, tuple[dict, str, str]]:
    """{name: (content, branch to ask for, what is left out)}; the other branch has other tensors."""
    o = network(1)
    project = {"queue": torch.ones(4, 4), "queue_ptr": torch.zeros(1)}
    q, k = "module.encoder_q.", "module.encoder_k."
    linear = {"fc.weight": torch.ones(128, 2048), "fc.bias": torch.ones(128)}
    both = {**under(q, m), **under(k, o)}
    v1 = {**both, **{q + n: t for n, t in linear.items()}, **{k + n: t for n, t in linear.items()}, **project}
    v2 = {**both, **mlp(q + "fc."), **mlp(k + "fc."), **project}
    v3 = {**under("module.base_encoder.", m), **under("module.momentum_encoder.", o), **mlp("module.predictor.")}
    vissl = {"base_model": {"model": {"trunk": under("_feature_blocks.", m), "heads": mlp("0.")}}}
    dense = {**under("encoder_q.0.", m), **mlp("encoder_q.1.mlp."), **under("encoder_k.0.", o), "queue": torch.ones(1)}
    return {
        "moco v1": ({"state_dict": v1, "epoch": 200}, "encoder_q", "fc"),
        "moco v2": ({"state_dict": v2}, "encoder_q", "fc"),
        "moco v3": ({"state_dict": v3}, "base_encoder", "predictor"),
        "simsiam": ({"state_dict": {**under("module.encoder.", m), **mlp("module.encoder.fc.")}}, "", "fc"),
        "swav": ({**under("module.", m), **mlp("module.projection_head."), "module.prototypes.weight": torch.ones(3)},
                 "", "prototypes"),
        "dino": ({"student": {**under("module.backbone.", o), **mlp("module.head.mlp.")},
                  "teacher": {**under("backbone.", m), **mlp("head.mlp.")}, "epoch": 1}, "teacher", "student"),
        "barlow twins": (under("", m), "", ""),
        "vicreg": ({"model": {**under("module.backbone.", m), **mlp("module.projector.")}}, "", "projector"),
        "densecl": ({"state_dict": dense}, "encoder_q", "queue"),
        "openselfsup": ({"state_dict": under("backbone.", m)}, "", ""),
        "pixpro": ({"model": {**under("module.encoder.", m), **under("module.encoder_k.", o)}}, "encoder", "encoder_k"),
        "vissl": ({"classy_state_dict": vissl}, "", ""),
        "solo-learn": ({"state_dict": {**under("backbone.", m), **mlp("projector."), **mlp("classifier.")}}, "",
                       "classifier"),
        "lightly": ({"state_dict": {**children("backbone.", m), **mlp("projection_head.layers.")}}, "",
                    "projection_head"),
        "mmpretrain": ({"state_dict": {**under("backbone.", m), **{f"head.fc.{n}": p for n, p in
                        m.fc.state_dict().items()}}, "meta": {}}, "", ""),
        "lightning": ({"state_dict": under("model.", m, fc=True), "hyper_parameters": {}}, "", ""),
        "segmentation": (under("encoder.", m) | {"decoder.x.weight": torch.ones(2)}, "", "decoder"),
        "tutorial": ({"model_state_dict": under("", m, fc=True), "optimizer_state_dict": {"state": {0: {}}}}, "", ""),
        "children alone": (children("", m), "", ""),
    }  # fmt: skip


NAMES = list(layouts(network()))


@pytest.mark.parametrize("name", NAMES)
def test_each_layout_gives_torchvisions_features(name, theirs, tmp_path):
    content, branch, left = layouts(theirs)[name]
    torch.save(content, tmp_path / "w.pth")
    if branch:
        with pytest.raises(UserError, match=rf"2 trunks; it holds .*{branch}.*--branch NAME"):
            read_checkpoint(tmp_path / "w.pth")
    found = read_checkpoint(tmp_path / "w.pth", branch=branch)
    assert branch in found.branch and (not left or any(left in part for part in found.left_out)), found.left_out
    has_fc = name in ("mmpretrain", "lightning", "tutorial")
    ours = create_model("resnext14_1x64d", num_classes=7).eval()
    load_strictly(ours, found, allow_missing=() if has_fc else ("fc",))
    with torch.no_grad():
        if has_fc:
            assert relative_error(ours(IMAGE), theirs(IMAGE)) < 1e-5
        body = torch.nn.Sequential(*list(theirs.children())[:-2])
        x = ours.stem(IMAGE)
        for stage in ("res2", "res3", "res4", "res5"):
            x = getattr(ours, stage)(x)
        assert relative_error(x, body(IMAGE)) < 1e-5


def test_wrong_ones_are_refused_in_one_line(theirs, tmp_path):
    whole = under("module.encoder_q.", theirs)
    twice = {**whole, **under("module.encoder_k.", network(1))}
    gone = {n: t for n, t in whole.items() if "layer3.0.conv2" not in n}
    wrong = {
        "ambiguous": (twice, "", "2 trunks"),
        "no such branch": (twice, "teacher", "no branch teacher"),
        "branch of a plain file": (under("", theirs), "teacher", "no branch teacher"),
        "not a trunk": ({"encoder.weight": torch.ones(1)}, "encoder", "leave the branch out"),
        "half": (gone, "", "res4.0.conv2.weight is missing"),
        "no stem": ({n: t for n, t in whole.items() if "encoder_q.conv1" not in n}, "", "not a ResNet"),
        "attention": (whole | {"module.encoder_q.layer1.0.attn.weight": torch.ones(1)}, "", "another family"),
        "NaN": (whole | {"module.encoder_q.bn1.bias": torch.full((64,), torch.nan)}, "", "NaN"),
        "shape": (whole | {"module.encoder_q.layer2.0.bn1.bias": torch.ones(3)}, "", "does not fit its neighbors"),
        "a transformer": ({"module.blocks.0.attn.qkv.weight": torch.ones(2, 2)}, "", "not a ResNet"),
        "optimizer alone": ({"optimizer": {"state": {0: {"exp_avg": torch.ones(1)}}}}, "", "no tensors"),
    }
    for name, (content, branch, line) in wrong.items():
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(UserError) as caught:
            main([str(tmp_path / "w.pth"), str(tmp_path / "out.pth"), "--branch", branch])
        assert line in str(caught.value) and "\n" not in str(caught.value), (name, str(caught.value))
        assert not (tmp_path / "out.pth").exists()


@pytest.mark.skipif(compat.detectron2_folder() is None, reason="no detectron2")
def test_detectron2s_own_checkpointer_reads_the_pickle(theirs, tmp_path, capsys):
    """Its DetectionCheckpointer fills a stock C4 detector's trunk, res5 in the head: torchvision's features."""
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.modeling.backbone import BasicStem, BottleneckBlock
    from detectron2.modeling.backbone import ResNet as StockResNet

    torch.save(under("module.encoder_q.", theirs) | mlp("module.encoder_q.fc."), tmp_path / "w.pth")
    main([str(tmp_path / "w.pth"), str(tmp_path / "out.pkl"), "--to", "detectron2"])
    assert "branch: encoder_q" in capsys.readouterr().out
    stages = [
        StockResNet.make_stage(
            BottleneckBlock, 1, stride_per_block=[1 if i == 0 else 2], in_channels=[64, 256, 512, 1024][i],
            out_channels=256 * 2**i, bottleneck_channels=64 * 2**i, norm="BN", stride_in_1x1=False,
        )
        for i in range(4)
    ]  # fmt: skip
    detector = torch.nn.Module()
    detector.backbone = StockResNet(BasicStem(norm="BN"), stages[:3], out_features=["res4"])
    detector.roi_heads = torch.nn.Module()
    detector.roi_heads.res5 = torch.nn.Sequential(*stages[3])
    DetectionCheckpointer(detector).load(str(tmp_path / "out.pkl"))
    body = torch.nn.Sequential(*list(theirs.children())[:-2])
    with torch.no_grad():
        found = detector.eval().roi_heads.res5(detector.backbone(IMAGE)["res4"])
        assert relative_error(found, body(IMAGE)) < 1e-5
    with pytest.raises(UserError, match="detectron2's form is a .pkl file"):
        main([str(tmp_path / "w.pth"), str(tmp_path / "out.pth"), "--to", "detectron2"])
