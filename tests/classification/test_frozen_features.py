"""Frozen features: the k-NN is scikit-learn's, and a linear training changes fc alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnext_det import create_model
from resnext_det.classification.knn import knn_scores
from resnext_det.commands.pretrain import main
from resnext_det.weights import save_checkpoint

CHANNELS = {"stem_out_channels": 8, "res2_out_channels": 16}


@pytest.mark.parametrize(("neighbors", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.5), (60, 0.07)])
def test_votes_are_those_of_scikit_learn(neighbors: int, temperature: float) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    generator = np.random.default_rng(neighbors)
    labels = generator.integers(0, 4, 60)
    features = generator.normal(size=(60, 7)) + labels[:, None]
    queries = generator.normal(size=(1500, 7)) + generator.integers(0, 4, 1500)[:, None]
    oracle = KNeighborsClassifier(
        neighbors, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / temperature)
    )
    expected = oracle.fit(features, labels).predict_proba(queries)
    tensors = (torch.from_numpy(x) for x in (features, labels, queries))
    found = knn_scores(*tensors, neighbors, temperature, 4).numpy()
    np.testing.assert_allclose(found / found.sum(1, keepdims=True), expected, rtol=1e-9, atol=1e-12)
    assert len(set(expected.argmax(1))) == 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noisy images of two colors, the weights of a network that knows them by the same names, and a config."""
    root = tmp_path_factory.mktemp("frozen")
    noise = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 5)):
        for name, color in (("blue", (60, 60, 200)), ("red", (200, 60, 60))):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(noise.normal(color, 60, (20, 24, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    torch.manual_seed(1)
    state = create_model("resnext14_2x2d", 2, **CHANNELS).state_dict()
    save_checkpoint(root / "weights.pth", state, {})
    save_checkpoint(root / "headless.pth", {k: v for k, v in state.items() if not k.startswith("fc.")}, {})
    (root / "config.yaml").write_text(f"""
MODEL: {{NAME: resnext14_2x2d, STEM_OUT_CHANNELS: 8, RES2_OUT_CHANNELS: 16, DEVICE: cpu, FREEZE_TRUNK: True}}
DATASETS: {{TRAIN: {root}/train, TEST: {root}/val}}
DATALOADER: {{NUM_WORKERS: 0}}
INPUT: {{CROP_SIZE: 16}}
TEST: {{SHORT_SIDE: 16, CROP_SIZE: 16, KNN: 3}}
SOLVER: {{EPOCHS: 2, STEPS: [], IMS_PER_BATCH: 8, REFERENCE_BATCH: 8, BASE_LR: 0.5, WEIGHT_DECAY: 0.1}}
""")
    return root


@pytest.mark.parametrize(("weights", "more"), [("weights", []), ("headless", ["SOLVER.EMA_DECAY", "0.5"])])
def test_fc_alone_is_trained_and_anew(weights: str, more: list[str], folder: Path, tmp_path: Path) -> None:
    main(["--config-file", str(folder / "config.yaml"), *more, "MODEL.WEIGHTS", str(folder / f"{weights}.pth"),
          "OUTPUT_DIR", str(tmp_path)])  # fmt: skip
    assert "backbone 85/85, new: fc 2" in (tmp_path / "log.txt").read_text()
    before = torch.load(folder / "weights.pth", weights_only=True)["model"]
    after = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    moved = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert moved == {"fc.weight", "fc.bias"}
    results = json.loads((tmp_path / "results.json").read_text())
    assert 0 <= results["knn_top1_error"] < 50 and "top1_error" in results


def test_the_rate_of_a_trained_network_is_of_its_own_features(folder: Path, tmp_path: Path) -> None:
    """``--eval-only`` gives the same number, and so does another number of neighbors than there are images."""
    options = ["--config-file", str(folder / "config.yaml"), "MODEL.WEIGHTS", str(folder / "weights.pth")]
    rates = []
    for neighbors in (3, 1000):
        main(["--eval-only", *options, "TEST.KNN", str(neighbors), "OUTPUT_DIR", str(tmp_path)])
        rates.append(json.loads((tmp_path / "results.json").read_text())["knn_top1_error"])
    main([*options, "OUTPUT_DIR", str(tmp_path)])
    assert json.loads((tmp_path / "results.json").read_text())["knn_top1_error"] == rates[0]
    assert all(rate % 10 == pytest.approx(0, abs=1e-4) or rate % 10 == pytest.approx(10, abs=1e-4) for rate in rates)
