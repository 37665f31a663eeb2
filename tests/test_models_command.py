"""`vfm models`."""

import json

import pytest

from vfm.cli import main
from vfm.models.presets import PRESETS


def lines(capsys, *words):
    assert main(["models", *words]) == 0
    return capsys.readouterr().out.splitlines()


def test_presets_come_first_and_timm_after_them(capsys):
    names = [line.split()[0] for line in lines(capsys)[1:-1]]
    assert names == [preset.name for preset in PRESETS]
    found = [line.split()[0] for line in lines(capsys, "vit_small_patch16_dinov3")[1:]]
    assert found[0] == "vit_small_patch16_dinov3.lvd1689m"
    assert "vit_small_patch16_dinov3_qkvb.lvd1689m" in found


def test_json_has_every_figure(capsys):
    rows = json.loads("\n".join(lines(capsys, "test_vit", "--json")))
    row = next(r for r in rows if r["name"] == "test_vit.r160_in1k")
    assert row["size"] == {
        "parameters": 306240,
        "gflops": pytest.approx(row["size"]["gflops"]),
        "width": 64,
        "patch": 16,
        "image_size": 160,
    }
    assert row["size"]["gflops"] > 0
    assert row["license"] == "apache-2.0"
    assert row["commercial"] is True
    assert row["may"] == ["sell", "redistribute", "train-others"]
    assert row["gated"] is False
    assert row["preset"] is False


def test_commercial_hides_what_is_forbidden_or_not_stated(capsys):
    everything = lines(capsys, "hiera_tiny*")
    assert any("cc-by-nc-4.0 (!)" in line for line in everything)
    cleared = lines(capsys, "*hiera_tiny*", "--commercial")
    assert not any("cc-by-nc" in line for line in cleared)
    assert any(line.startswith("sam2_hiera_tiny") for line in cleared)
    assert "hidden: their licence does not permit to sell, or they state none" in cleared[-1]
    shared = lines(capsys, "hiera_tiny*", "--may", "redistribute,train-others")
    assert any("cc-by-nc-4.0 (!)" in line for line in shared)
    both = lines(capsys, "*hiera_tiny*", "--may", "redistribute,sell")
    assert not any("cc-by-nc" in line for line in both)
    assert "does not permit to redistribute and sell" in both[-1]
    assert main(["models", "--may", "sel"]) == 2
    text = "--may is 'sel': 'sel' is no use. Did you mean 'sell'? Choices: sell, redistribute, train-others."
    assert text in capsys.readouterr().err


def test_task_narrows_the_presets(capsys):
    rows = json.loads("\n".join(lines(capsys, "--task", "detection", "--json")))
    assert rows
    assert all("detection" in row["uses"] and row["preset"] for row in rows)


def test_many_are_counted_and_not_measured(capsys, monkeypatch):
    monkeypatch.setattr("vfm.cli.models._MOST_MEASURED", 2)
    rows = lines(capsys, "resnet18")
    assert len(rows) == 1 + 2 + 1
    assert "more of timm have such a name" in rows[-1]


def test_nothing_found_names_what_is_near(capsys):
    assert main(["models", "vit_smal_patch16"]) == 2
    text = capsys.readouterr().err
    assert "No backbone has a name like 'vit_smal_patch16'" in text
    assert main(["models", "--task", "cooking"]) == 2
    assert "--task is 'cooking'. Expected one of" in capsys.readouterr().err
