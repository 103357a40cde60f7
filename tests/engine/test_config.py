"""YAML for people who mistype, and for those who do not trust where a file is from."""

import pytest
from detectron2.config import get_cfg

from resnext_det.classification.config import get_config
from resnext_det.detection.config import add_resnext_config
from resnext_det.engine.config import load_config, resolve_device
from resnext_det.errors import UserError


def detection():
    cfg = get_cfg()
    add_resnext_config(cfg)
    return cfg


@pytest.fixture(params=[detection, get_config])
def cfg(request):
    return request.param()


def load(cfg, tmp_path, text, opts=()):
    (tmp_path / "c.yaml").write_text(text)
    return load_config(cfg, str(tmp_path / "c.yaml"), ["MODEL.DEVICE", "cpu", *opts])


def test_file_then_command_line(cfg, tmp_path):
    (tmp_path / "base.yaml").write_text("SOLVER: {BASE_LR: 0.5, IMS_PER_BATCH: 3}\nSEED: 9\n")
    load(cfg, tmp_path, "_BASE_: base.yaml\nSOLVER: {BASE_LR: 0.25}\n", ["SOLVER.IMS_PER_BATCH", "7"])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.IMS_PER_BATCH, cfg.SEED) == (0.25, 7, 9)


def test_whole_numbers_do_for_broken_ones(cfg, tmp_path):
    load(cfg, tmp_path, "SOLVER: {BASE_LR: 1}\n", ["SOLVER.GAMMA", "2"])
    assert [(type(v), v) for v in (cfg.SOLVER.BASE_LR, cfg.SOLVER.GAMMA)] == [(float, 1.0), (float, 2.0)]


@pytest.mark.parametrize("where", ["file", "command line"])
def test_case_42_a_mistyped_key_gets_the_nearest_name(cfg, tmp_path, where):
    with pytest.raises(UserError, match="unknown key SOLVER.BASE_RL; did you mean SOLVER.BASE_LR"):
        if where == "file":
            load(cfg, tmp_path, "SOLVER: {BASE_RL: 1.0}")
        else:
            load(cfg, tmp_path, "SEED: 1", ["SOLVER.BASE_RL", "1.0"])


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.mkdir", "!!python/name:os.mkdir", "!!python/object/new:os.mkdir"]
)
def test_yaml_that_would_run_code_is_refused(cfg, tmp_path, tag):
    target = tmp_path / "ran"
    with pytest.raises(UserError, match="only plain YAML"):
        load(cfg, tmp_path, f"OUTPUT_DIR: {tag} ['{target}']\n")
    assert not target.exists()


def test_yaml_that_would_run_code_in_a_base_file_is_refused(cfg, tmp_path):
    (tmp_path / "base.yaml").write_text(f"OUTPUT_DIR: !!python/object/apply:os.mkdir ['{tmp_path / 'ran'}']\n")
    with pytest.raises(UserError, match="only plain YAML"):
        load(cfg, tmp_path, "_BASE_: base.yaml\n")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "text",
    [
        "SOLVER: [1",
        "- a\n- b",
        "SOLVER: {BASE_LR: [1, 2]}",
        "_BASE_: c.yaml",
        "_BASE_: gone.yaml",
        "\0",
        "",
        "# nothing",
        "&a [*a]",
    ],
)
def test_broken_yaml_is_one_line(cfg, tmp_path, text):
    with pytest.raises(UserError, match="c.yaml"):
        load(cfg, tmp_path, text)


def test_a_missing_file_names_a_similar_one(cfg, tmp_path):
    (tmp_path / "paper.yaml").write_text("")
    with pytest.raises(UserError, match="did you mean paper.yaml"):
        load_config(cfg, str(tmp_path / "papr.yaml"))


def test_values_come_in_pairs_and_of_the_right_type(cfg, tmp_path):
    with pytest.raises(UserError, match="stands alone"):
        load(cfg, tmp_path, "SEED: 1", ["SEED"])
    with pytest.raises(UserError, match="SOLVER.IMS_PER_BATCH"):
        load(cfg, tmp_path, "SEED: 1", ["SOLVER.IMS_PER_BATCH", "many"])


def test_devices():
    assert resolve_device("auto") in ("cpu", "cuda") and resolve_device("cpu") == "cpu"
    with pytest.raises(UserError, match="not on this machine"):
        resolve_device("cuda:63")
    with pytest.raises(UserError, match="MODEL.DEVICE meta"):
        resolve_device("meta")


def test_a_key_without_a_value_is_refused(cfg, tmp_path):
    with pytest.raises(UserError, match="SOLVER.BASE_LR has no value"):
        load(cfg, tmp_path, "SOLVER: {BASE_LR: }")
