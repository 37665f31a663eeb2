"""`vfm pretrain`: the pilot, the rounds, when they end, what goes on after a kill, alarms and refusals in words."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from vfm_runtime.errors import OptionError

import vfm
from tests.audit.doctor.conftest import draw_scene
from tests.image_folders import write_image_folder
from vfm.cli import main
from vfm.pretrain import command, rounds
from vfm.pretrain.command import report_leaks
from vfm.pretrain.leaks import find_leaks
from vfm.pretrain.options import PretrainOptions, TimeBudgetError, format_time, parse_budget
from vfm.pretrain.page import describe_run
from vfm.pretrain.probe import LabeledProbe, Point
from vfm.pretrain.rounds import FEWEST_STEPS, Pace, Pretrainer, open_images
from vfm.pretrain.run import Run
from vfm.pretrain.trend import fit_trend
from vfm.training.meter import RunMeter
from vfm.training.oom import read_free_memory

TINY = ["--backbone", "test_efficientnet", "--image-size", "32", "--batch-size", "8"]
VIEWS = ["--views.num_local", "1"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `pool` and `probe`, which share no image."""
    root = tmp_path_factory.mktemp("pretrain")
    write_image_folder(root / "pool", images_per_class=6, seed=1)
    write_image_folder(root / "probe", images_per_class=6, seed=2)
    return root


def point(name: str = "round 1", **changes: float) -> Point:
    values: dict[str, Any] = {"hours": 1.0, "kwh": None, "steps": 10, "knn": 0.8, "low": 0.7}
    values |= {"high": 0.9, "rankme": 9.0, "uniformity": -2.0, "width": 16}
    return Point(name=name, **(values | changes))


@pytest.mark.slow
def test_a_run_is_killed_and_goes_on_after_its_last_round(
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Pretrainer, "measure_pace", lambda self: Pace(0.0, 0.01))
    trained: list[tuple[str, dict[str, torch.Tensor]]] = []

    def train(self: Pretrainer, seconds: float) -> tuple[int, RunMeter, float]:
        trained.append((self.method, {k: v.clone() for k, v in self.task.state_dict().items()}))
        if len(trained) == 4:
            raise KeyboardInterrupt
        if len(trained) == 5:
            monkeypatch.setattr(command, "_RESERVE", 1e9)  # there is no time for one more
        self.pace = Pace(0.0, seconds)
        return real(self, seconds)

    real = Pretrainer.train
    monkeypatch.setattr(Pretrainer, "train", train)
    out = tmp_path / "out"
    words = ["pretrain", str(images / "pool"), "--probe", str(images / "probe"), *TINY, *VIEWS]
    words += ["--out", str(out), "--budget", "10m"]
    with pytest.raises(KeyboardInterrupt):
        main(words)
    stored = json.loads((out / "results.json").read_text())["pretrain"]
    assert [p["name"] for p in stored["pilot"]] == ["VISReg", "LeJEPA"]
    assert [p["name"] for p in stored["rounds"]] == ["round 1"]
    last = torch.load(out / "rounds/round_1.ckpt", weights_only=True)["state_dict"]
    assert main(words) == 0
    method, start = trained[4]
    assert method == stored["method"]
    for key, value in last.items():
        assert torch.equal(start[key], value), key
    text = capsys.readouterr().out
    assert "Going on after round 1" in text
    ended = json.loads((out / "results.json").read_text())["pretrain"]
    assert ended["rounds"][0] == stored["rounds"][0]
    assert ended["rounds"][1]["hours"] > stored["rounds"][0]["hours"]
    assert ended["ended"] == "the budget is spent"
    assert ended["start"]["kwh"] == 0.0
    assert 0 <= ended["start"]["knn"] <= 1
    best = max(
        [p for p in ended["pilot"] if p["name"] == method] + ended["rounds"], key=lambda p: p["knn"]
    )
    assert f"Model: {out / 'model.ckpt'}, of '{best['name']}'" in text
    picture = next((images / "probe").rglob("*.png"))
    assert vfm.load(out / "model.ckpt").embed(str(picture)).shape == (
        last["backbone.model.conv_head.weight"].shape[0],
    )
    page = (out / "report.html").read_text()
    assert "kNN on the probe by the minutes of training" in page
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert (
        f"--model.weights {out / 'model.ckpt'} --data FolderData --data.root {images / 'probe'}"
        in text
    )
    assert main([*words, "--lr", "1e-3"]) == 1
    assert (
        "holds a run with lr 0.0005, and now it is 0.001. Give the same" in capsys.readouterr().err
    )


def test_a_budget_shorter_than_the_pilot_says_how_much_would_do(
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Pretrainer, "measure_pace", lambda self: Pace(2.0, 0.3))
    words = ["pretrain", str(images / "pool"), "--probe", str(images / "probe"), *TINY]
    assert main([*words, "--out", str(tmp_path), "--budget", "60s"]) == 1
    text = capsys.readouterr().err
    # 2 s and 10 steps of 0.3 s are a twentieth of 100 s; a fifth more is advised.
    assert "--budget 60s is shorter than the pilot needs: 10 steps of VISReg take 5.0 s" in text
    assert "Give --budget 2m or more" in text
    assert FEWEST_STEPS == 10


def test_images_that_judge_and_are_trained_on_are_leaks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    number = 0
    for folder, count in (
        ("pool", 6),
        ("probe/train/a", 2),
        ("probe/train/b", 2),
        ("probe/test/a", 2),
        ("new", 2),
    ):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(count):
            draw_scene(number := number + 1).save(tmp_path / folder / f"{i}.png")
    pool, probe, new = (tmp_path / name for name in ("pool", "probe", "new"))
    judge = LabeledProbe(probe, 100, 0)
    run = Run(tmp_path, {})
    report_leaks(run, judge, new, open_images(pool, 2, 0).records["train"], 60.0)
    assert capsys.readouterr().out == ""
    shutil.copyfile(probe / "train" / "a" / "0.png", pool / "equal.png")
    with Image.open(probe / "train" / "b" / "1.png") as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(pool / "mirrored.jpg")
    with Image.open(probe / "test" / "a" / "1.png") as image:
        image.resize((80, 80)).save(pool / "smaller.jpg")
    with Image.open(new / "0.png") as image:
        image.save(pool / "again.jpg")
    report_leaks(run, judge, new, open_images(pool, 2, 0).records["train"], 60.0)
    assert {leak[1:] for leak in run.leaks} == {
        ("train/a/0.png", "equal.png", "same file"),
        ("train/b/1.png", "mirrored.jpg", "mirrored near-copy"),
        ("test/a/1.png", "smaller.jpg", "near-copy"),
        ("0.png", "again.jpg", "near-copy"),
    }
    assert capsys.readouterr().out.splitlines() == [*run.alarms.values()]
    assert run.alarms["leak of the probe"].startswith(
        "Leak: 2 of 4 images of the probe are among those trained on, 1 of them as near-copies, such as "
        "'train/a/0.png' ('equal.png', same file). Figures on the probe may be better"
    )
    # A run that goes on does not look again, but where there is more to compare.
    looks: list[int] = []
    monkeypatch.setattr(
        command, "find_leaks", lambda *_: (run.leaks, [str(looks.append(1) or "looked")])
    )
    again = Run.open(tmp_path, {})
    assert (again.leaks, again.alarms) == (run.leaks, run.alarms)
    report_leaks(again, judge, new, open_images(pool, 2, 0).records["train"], 1e9)
    assert looks == []
    report_leaks(again, judge, None, open_images(pool, 2, 0).records["train"], 60.0)
    assert looks == [1]
    leaks, notes = find_leaks(
        {"new": open_images(new, 2, 0).records["train"]},
        open_images(pool, 2, 0).records["train"],
        1,
    )
    assert leaks == []
    assert notes == [
        "Near-copies were looked for among 1 of the 10 images to train on, of 1 of 2 that judge; equal files among all."
    ]


def test_a_probe_with_a_val_split_is_voted_on_by_train(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "p", images_per_class=6, splits=["train", "val", "test"])
    probe = LabeledProbe(tmp_path / "p", 12, 0)
    assert [len(part) for part in probe.parts] == [12, 12]
    assert probe.parts[1][0].name.startswith("val/")
    trainer = Pretrainer(
        tmp_path / "p", "VISReg", PretrainOptions(backbone="test_efficientnet", image_size=32), 0
    )
    assert len(trainer.data.records["train"]) == 18
    probe.prepare(trainer.task)
    # Each image of val stands in train too: its copy is the nearest of all.
    probe.pixels[0] = probe.pixels[1]
    probe.parts[0] = probe.parts[1]
    measured = probe.measure(trainer.task, "start", hours=0, kwh=0, steps=0)
    assert measured.knn > 0.5
    assert probe.num_judged == 12


def test_a_line_over_log_hours_says_what_more_hours_give() -> None:
    hours = [0.1, 0.2, 0.4, 0.8]
    knn = [0.5 + 0.05 * math.log2(h / 0.1) for h in hours]
    trend = fit_trend(hours, knn, 1000)
    assert trend is not None
    gain = trend.expect(0.8)
    assert gain.points == pytest.approx(5.0)
    # The least noise is one image of 1,000: Student's t of 2 degrees, 4.30, by the spread of the logarithms.
    spread = math.sqrt(5) * math.log(2)
    assert gain.margin == pytest.approx(100 * 4.3027 * 0.001 / spread * math.log(2), rel=1e-3)
    assert trend.pays(0.8)
    assert not trend.pays(0.01)
    assert trend.expect(1e9).points == pytest.approx(100 * trend.room)
    falling = fit_trend(hours, knn[::-1], 1000)
    assert falling is not None
    assert not falling.pays(100)
    assert fit_trend(hours[:3], knn[:3], 1000) is None


def test_rounds_end_where_the_next_one_is_within_the_noise(tmp_path: Path) -> None:
    run = Run(tmp_path, {}, method="VISReg", round_seconds=60)
    run.start, run.pilot = point("start", knn=0.6), [point("VISReg", hours=0.1, knn=0.70)]
    run.rounds = [
        point(f"round {i}", hours=0.1 * 2**i, knn=0.7 + 0.02 * (i % 2)) for i in (1, 2, 3, 4)
    ]
    command.run_rounds(run, None, LabeledProbe.__new__(Fixed), 1e6)  # type: ignore[arg-type]
    assert run.ended.startswith("another round of 60s is expected to give ")
    assert run.ended.endswith("points, which is no gain")
    trend = run.fit_trend(100)
    assert trend is not None
    text = " ".join(describe_run(run, trend, 100))
    assert "kNN does not rise with the hours, so that nothing is said of many more" in text
    run.rounds = [
        point(f"round {i}", hours=0.1 * 2**i, knn=0.7 + 0.02 * (i == 2)) for i in (1, 2, 3, 4)
    ]
    run.rounds[-1] = point("round 4", hours=1.6, knn=0.715)
    command.run_rounds(run, None, LabeledProbe.__new__(Fixed), 1e6)  # type: ignore[arg-type]
    assert "points, within the noise of a point, 1." in run.ended
    run.rounds = [point(f"round {i}", hours=0.1 * 2**i, knn=0.6 + 0.05 * i) for i in (1, 2, 3, 4)]
    trend = run.fit_trend(100)
    text = " ".join(describe_run(run, trend, 100))
    assert "As long again (1.6 hours): +5.0 +- " in text
    assert "100 more hours: +20.0 +- " in text
    assert "100 hours are 62 times what was measured" in text
    run.round_seconds = 3600
    with pytest.raises(AttributeError):  # it would train on, by a trainer that is none
        command.run_rounds(run, None, LabeledProbe.__new__(Fixed), 1e6)  # type: ignore[arg-type]


class Fixed(LabeledProbe):
    num_judged = 100  # type: ignore[assignment]


def test_alarms_are_raised_once_in_words(tmp_path: Path) -> None:
    run = Run(tmp_path, {})
    flat = point(uniformity=-0.001)
    assert run.check(flat, [], 100)[0].startswith(
        "Collapse: all images get nearly the same vector (-0.001;"
    )
    assert run.check(flat, [], 100) == []
    thin = point(rankme=1.5, width=128)
    assert "the vectors use 1.5 of their 128 dimensions" in run.check(thin, [], 100)[0]
    low = point("round 4", knn=0.5)
    (text,) = run.check(low, [point(knn=0.8)], 1000)
    assert text.startswith("The probe falls: kNN is 0.500 after 'round 4', and was 0.800.")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ["--budget", "2 weeks"],
            "--budget is '2 weeks'. Give a number above 0 with its unit: 90s",
        ),
        (
            ["--methods", "VISRg"],
            "--methods names 'VISRg'. Did you mean 'VISReg'? Choices: VISReg, LeJEPA",
        ),
        (
            ["--methods", ""],
            "--methods is empty, and there is no --teacher. Give one or more of VISReg",
        ),
        (["--num-probe", "2"], "--num-probe is 2. Give 4 or more."),
        (["--probe", "nowhere"], "--probe nowhere does not exist. Give a folder of class folders"),
        (
            ["--probe", "one"],
            "--probe one has 2 images of 2 classes to judge by. Give images of two classes",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_image_folder("one", num_classes=2, images_per_class=1)
    probe = ["--probe", str(images / "probe")] if "--probe" not in words else []
    assert main(["pretrain", str(images / "pool"), *probe, *words]) == 1
    assert text in capsys.readouterr().err


def test_a_folder_of_other_results_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(OptionError, match="is of another command"):
        Run.open(tmp_path, {})


def test_budgets_are_written_as_they_are_read() -> None:
    assert [parse_budget(text) for text in ("90s", "30m", "2h", "1.5d")] == [90, 1800, 7200, 129600]
    assert [format_time(seconds) for seconds in (90, 1800, 7200)] == ["90s", "30m", "2h"]
    with pytest.raises(TimeBudgetError):
        parse_budget("0h")


@pytest.mark.slow
def test_a_real_budget_is_kept(
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(command, "PILOT", 0.2)
    weights = tmp_path / "teacher.pth"
    teacher = vfm.EmbeddingTask("test_vit", pretrained=False, image_size=32)
    torch.save(teacher.backbone.model.state_dict(), weights)
    words = ["pretrain", str(images / "pool"), "--probe", str(images / "probe"), *TINY, *VIEWS]
    words += ["--methods", "VISReg", "--teacher", "test_vit", "--teacher-size", "32"]
    words += ["--teacher-weights", str(weights), "--out"]
    # What is long enough depends on the machine, and is said of the first of the two methods.
    assert main([*words, str(tmp_path / "short"), "--budget", "1s"]) == 1
    said = re.search(r"Give --budget (\S+) or more", capsys.readouterr().err)
    assert said
    budget = math.ceil(4 * parse_budget(said[1]))
    out = tmp_path / "out"
    assert main([*words, str(out), "--budget", f"{budget}s"]) == 0
    results = json.loads((out / "results.json").read_text())["pretrain"]
    assert {p["name"] for p in results["pilot"]} == {"VISReg", "Distillation"}
    assert results["rounds"]
    assert results["seconds"] < 1.3 * budget
    assert results["ended"]


@pytest.mark.parametrize(
    ("free", "remedy"),
    [(40_000_000, "--batch-size 8, or a smaller --image-size"), (1000, "Give a")],
)
def test_a_batch_that_memory_does_not_hold_is_refused(
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    free: int,
    remedy: str,
) -> None:
    monkeypatch.setattr(rounds, "read_free_memory", lambda: free)
    words = ["pretrain", str(images / "pool"), "--probe", str(images / "probe"), *TINY]
    assert main([*words, "--batch-size", "32", "--out", str(tmp_path)]) == 1
    text = capsys.readouterr().err
    assert "A step of VISReg with " in text
    assert "GB are free" in text
    assert remedy in text


def test_a_run_that_goes_on_does_not_trace_its_memory_again(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Pretrainer(images / "pool", "MAE", PretrainOptions(batch_size=8), 0)
    monkeypatch.setattr(rounds, "read_free_memory", lambda: 1000)
    monkeypatch.setattr(rounds, "trace_memory", lambda *_: lambda size: 90.0 * size)
    assert trainer.check_memory(None) == 720
    monkeypatch.delattr(rounds, "trace_memory")
    assert trainer.check_memory(720) == 720


def test_free_memory_is_that_of_the_control_group_where_it_has_less(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    assert read_free_memory(meminfo, tmp_path) is None
    meminfo.write_text("MemTotal: 4000 kB\nMemAvailable: 3000 kB\n")
    assert read_free_memory(meminfo, tmp_path) == 3_072_000
    (tmp_path / "memory.current").write_text("1000\n")
    for limit, free in (("max\n", 3_072_000), ("5000\n", 4000)):
        (tmp_path / "memory.max").write_text(limit)
        assert read_free_memory(meminfo, tmp_path) == free
