import math

import pytest

from resnext_det import UserError
from resnext_det.reporting.tables import ap_table, class_table, error_table, results_table

X50 = {"AP": 27.51, "AP50": 49.7, "AP75": 27.0, "APs": 9.96, "APm": 30.0, "APl": math.nan, "AR1": 25.0}


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_ap_table_leads_with_the_papers_columns():
    header, rule, x50, x101, r50 = ap_table({"X50": X50, "X101": None, "R50": {"AP": None}}).splitlines()
    assert cells(header) == ["", "AP@0.5", "AP", "AP@0.75", "AP small", "AP medium", "AP large"]
    assert set(rule) <= set("|-:")
    assert cells(x50) == ["X50", "49.7", "27.5", "27.0", "10.0", "30.0", "–"]
    assert cells(x101) == ["X101"] + ["not run"] * 6
    assert cells(r50) == ["R50", "not run", "–"] + ["not run"] * 4


def test_the_papers_numbers_stand_beside_ours():
    paper = {"X50": {"AP50": 49.7, "AP": 27.5}, "R50": {"AP50": 47.6}}
    header, _, x50, r50, other = ap_table({"X50": X50, "R50": None, "other": X50}, paper=paper).splitlines()
    assert cells(header)[:6] == ["", "AP@0.5", "AP@0.5 (paper)", "AP", "AP (paper)", "AP@0.75"]
    assert cells(x50)[:5] == ["X50", "49.7", "49.7", "27.5", "27.5"]
    assert cells(r50)[:5] == ["R50", "not run", "47.6", "not run", "–"]
    assert cells(other)[2] == "–"


def test_error_table_has_two_decimals():
    _, _, line = error_table({"X50": {"top1_error": 22.2, "top5_error": 6.0}}).splitlines()
    assert cells(line) == ["X50", "22.20", "6.00"]


def test_class_table_keeps_order_and_leaves_the_mean_out():
    results = {**X50, "AP-zero": 50.04, "AP-one": None, "AP50-zero": 100.0, "AP50-one": math.nan}
    header, _, zero, one = class_table(results).splitlines()
    assert cells(header) == ["class", "AP@0.5", "AP"]
    assert cells(zero) == ["zero", "100.0", "50.0"] and cells(one) == ["one", "–", "–"]
    assert cells(class_table({"AP-cat": 1.0}).splitlines()[0]) == ["class", "AP"]
    with pytest.raises(UserError, match="AP-<class>"):
        class_table(X50)


def test_quoted_lines_are_no_runs_of_ours():
    table = results_table(
        {"X50": None, "Other": None}, {"AP50": "AP@0.5"}, paper={"Other": {"AP50": 1.0}}, quoted=["Other"]
    )
    assert [cells(line) for line in table.splitlines()[2:]] == [["X50", "not run", "–"], ["Other", "quoted", "1.0"]]


def test_plain_text():
    text = results_table({"X50": {"AP50": 49.7}, "X101": None}, {"AP50": "AP@0.5"}, style="plain")
    assert text.splitlines() == ["        AP@0.5", "----  --------", "X50       49.7", "X101   not run"]
    with pytest.raises(UserError, match="html.*markdown"):
        ap_table({}, style="html")
