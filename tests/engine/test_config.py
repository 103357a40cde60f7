"""YAML for people who mistype, and for those who do not trust where a file is from."""

import pytest
from detectron2.config import get_cfg

from resnext_det.classification.config import get_config
from resnext_det.detection.config import add_resnext_config
from resnext_det.engine.config import load_config, resolve_device
from resnext_det.errors import UserError
from resnext_det.files import SHOWN


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
    with pytest.raises(UserError, match=f"^MODEL.DEVICE x{{1,{SHOWN}}}…: not on this machine"):
        resolve_device("x" * 10_000)


def test_a_key_without_a_value_is_refused(cfg, tmp_path):
    with pytest.raises(UserError, match="SOLVER.BASE_LR has no value"):
        load(cfg, tmp_path, "SOLVER: {BASE_LR: }")


def bomb():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (bomb(), "more than 100000 values"),
        ("a: " + "[" * 5000, "more than 50 lists"),
        ("SOLVER: {BASE_LR: 0.1}\nSEED: 1\nSOLVER: {GAMMA: 0.2}", "SOLVER stands twice, in lines 1 and 3"),
        ("SEED: 1\n" + "#" * (1 << 20), "more than the limit of 1048576"),
        ("_BASE_: https://example.com/a.yaml", "is an address; give a file"),
        ("_BASE_: 3", "not the name of a file"),
        ("_BASE_: /dev/zero", "is a device"),
        ("SOLVER: {BASE_LR: .inf}", "SOLVER.BASE_LR is inf"),
        ("SOLVER: {BASE_LR: .nan}", "SOLVER.BASE_LR is nan"),
        ("SOLVER: {BASE_LR: 1e999}", "SOLVER.BASE_LR is inf"),
        ("SOLVER: {STEPS: many}", r'SOLVER.STEPS takes several values, not .many.; write \("many",\)'),
        ("SEED: " + "9" * 9999, "not YAML"),
        ("SOLVER: {BASE_LR: " + "9" * 400 + "}", "Type mismatch .* for config key: SOLVER.BASE_LR"),
        ("SEED: " + "x" * 9000, "^.{,700}for config key: SEED"),
        ("a: \x1b[31m", "not YAML"),
    ],
)
def test_yaml_that_costs_or_loses_something_is_one_line(cfg, tmp_path, text, line):
    with pytest.raises(UserError, match=line) as caught:
        load(cfg, tmp_path, text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("number", ["++5", "--5", "²", "1e999", "nan", "5_"])
def test_what_is_no_number_is_refused_on_the_command_line(cfg, tmp_path, number):
    with pytest.raises(UserError, match="SOLVER.BASE_LR"):
        load(cfg, tmp_path, "SEED: 1", ["SOLVER.BASE_LR", number])


def test_a_flag_behind_the_settings_is_named(cfg, tmp_path):
    with pytest.raises(UserError, match="--resume stands behind the settings; write it before them"):
        load(cfg, tmp_path, "SEED: 1", ["SEED", "2", "--resume"])


def test_hints_compare_the_last_part(cfg, tmp_path):
    with pytest.raises(UserError) as caught:
        load(cfg, tmp_path, "SOLVER: {XYZZYX: x}")
    assert "did you mean" not in str(caught.value)


def test_home_and_variables_in_paths(cfg, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.setenv("RUNS", "/r")
    (tmp_path / "base.yaml").write_text("OUTPUT_DIR: $RUNS/a\n")
    monkeypatch.setenv("BASES", str(tmp_path))
    load(cfg, tmp_path, "_BASE_: $BASES/base.yaml\nMODEL: {WEIGHTS: ~/w.pth}\n")
    assert (cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS) == ("/r/a", "/h/w.pth")
