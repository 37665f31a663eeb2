"""The command line's way with real and forged faces: train, test on the same and on other data."""

import json
import shlex
import shutil

import pytest

from tests.deepfake.data.faces import write_faces
from vfm.cli import main

FIT = shlex.split(
    "--model DeepfakeTask --model.backbone test_vit --model.pretrained false --model.image_size 32 --data DeepfakeData "
    "--data.batch_size 8 --data.num_workers 0 --trainer.max_epochs 1 --trainer.logger false"
)
QUIET = shlex.split(
    "--trainer.accelerator cpu --trainer.enable_progress_bar false --trainer.enable_model_summary false"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forged")
    write_faces(folder / "faces", num_identities=12, num_frames=1, size=48)
    words = [*FIT, *QUIET, "--data.root", str(folder / "faces")]
    assert main(["fit", *words, "--trainer.default_root_dir", str(folder / "run")]) == 0
    return folder


def results_of(checkpoint, *words):
    assert main(["test", "--ckpt_path", str(checkpoint), *words, *QUIET]) == 0
    return json.loads((checkpoint.parent / "results.json").read_text())["test"]


def test_a_checkpoint_is_tested_on_its_own_split(run):
    listed = (run / "run/manifest.csv").read_text().splitlines()
    results = results_of(run / "run/checkpoints/best.ckpt")
    assert results["num_videos"] == sum(",test," in line for line in listed) > 0


def test_a_moved_run_finds_its_list_of_images(run, tmp_path):
    before = results_of(run / "run/checkpoints/best.ckpt")
    shutil.copytree(run / "run", tmp_path / "moved")
    hidden = (run / "run/manifest.csv").rename(run / "run/hidden.csv")
    try:
        again = results_of(tmp_path / "moved/checkpoints/best.ckpt")
    finally:
        hidden.rename(run / "run/manifest.csv")
    assert again["videos_fingerprint"] == before["videos_fingerprint"]


def test_other_data_is_not_read_by_the_list_of_the_training(run, tmp_path):
    items = write_faces(tmp_path / "other", num_identities=8, num_frames=1, size=48, seed=5)
    results = results_of(
        run / "run/checkpoints/best.ckpt",
        *("--data.root", str(tmp_path / "other"), "--data.force_split", "test"),
    )
    assert results["num_videos"] == len({item.key for item in items})


def test_a_detector_trained_on_blends_alone_is_audited_on_its_split(run, tmp_path, capsys):
    words = [*FIT, *QUIET, "--data.root", str(run / "faces"), "--data.mode", "sbi"]
    assert main(["fit", *words, "--trainer.default_root_dir", str(tmp_path)]) == 0
    checkpoint = tmp_path / "checkpoints/best.ckpt"
    assert main(["audit", str(checkpoint), "--conformal", "0.9"]) == 1
    assert "--conformal does not go with" in capsys.readouterr().err
    assert main(["audit", str(checkpoint), "--robustness", "--kinds", "fog"]) == 1
    assert "no corruption 'fog' (--kinds). Choices: jpeg, blur" in capsys.readouterr().err
    words = ["--robustness", "--kinds", "jpeg,h264", "--fail-on", "mean_corruption_error<2"]
    assert main(["audit", str(checkpoint), *words]) == 0
    found = json.loads((checkpoint.parent / "audit.json").read_text())
    assert found["num_images"] == results_of(checkpoint)["num_videos"]
    assert [row["level"] for row in found["robustness"]["curves"]["h264"]] == [23, 28, 35, 40]
    assert "JPEG quality 10" in (checkpoint.parent / "audit.html").read_text()


def test_false_alarms_are_compared_between_groups_of_videos(run, tmp_path, capsys):
    items = write_faces(tmp_path / "other", num_identities=24, num_frames=2, size=48, seed=5)
    manifest = tmp_path / "other/manifest.csv"
    header, *rows = manifest.read_text().splitlines()
    camera = {item.path: "ab"[int(item.identities[0][-1]) % 2] for item in items}
    folder = manifest.parent.absolute().as_posix() + "/"
    lines = [f"{row},{camera[folder + row.split(',')[0]]}" for row in rows]
    manifest.write_text("\n".join([f"{header},camera", *lines]))
    words = [str(run / "run/checkpoints/best.ckpt"), "--data", str(manifest.parent)]
    words += ["--device", "cpu", "-o", str(tmp_path / "out")]
    assert main(["audit", *words, "--groups", "camera", "--fail-on", "auroc>1"]) == 1
    captured = capsys.readouterr()
    assert "1 of 1 rules of --fail-on do not hold: auroc>1" in captured.err
    assert "videos of this group" in captured.out
    result = json.loads((tmp_path / "out/audit.json").read_text())
    assert (result["unit"], result["num_images"], result["num_clusters"]) == ("videos", 72, 12)
    assert result["groups"]["comparisons"][0]["metric"] == "false_positive_rate"
    assert {each["metric"] for each in result["groups"]["comparisons"]} == set(result["metrics"])
    assert "72 videos" in (tmp_path / "out/audit.html").read_text()
    # The images of one video are in one group.
    manifest.write_text("\n".join([f"{header},camera", lines[0][:-1] + "z", *lines[1:]]))
    assert main(["audit", *words, "--groups", "camera"]) == 1
    assert "A video is in one group" in capsys.readouterr().err
