import json
import subprocess
import sys

import numpy as np
import pytest
import vfm_runtime
from PIL import Image
from vfm_runtime.cli import main
from vfm_runtime.tasks.base import PredictionView

from tests.runtime import toy

COMMANDS = "predict, search, check, info"


@pytest.fixture
def folder(tmp_path):
    """Two photos and a broken one."""
    place = tmp_path / "photos"
    place.mkdir()
    for name, photo in zip(("a.png", "c.png"), toy.photos(), strict=False):
        Image.fromarray(photo).save(place / name)
    (place / "b.jpg").write_bytes(b"broken")
    return place


def test_predict(bundle, folder, capsys, model):
    assert main(["predict", str(bundle), str(folder / "a.png"), "--device", "cpu"]) == 0
    line = capsys.readouterr().out
    best = ", ".join(
        f"{label} {score:.4f}" for label, score in model.predict(folder / "a.png").top()
    )
    assert line == f"{folder / 'a.png'}: {best}\n"


def test_predict_json_and_a_bad_file(bundle, folder, capsys, model):
    words = ["predict", str(bundle), str(folder), "--json", "--top", "2", "--batch-size", "1"]
    assert main(words) == 1
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert [line["image"] for line in lines] == [
        str(folder / name) for name in sorted(("a.png", "b.jpg", "c.png"))
    ]
    assert lines[0] == {
        "image": str(folder / "a.png"),
        **model.predict(folder / "a.png").to_dict(PredictionView(top=2)),
    }
    assert len(lines[2]["top"]) == 2
    assert "not an image" in lines[1]["error"]
    assert captured.err.startswith(f"error: {folder / 'b.jpg'}: not an image")


def test_predict_empty_folder(bundle, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["predict", str(bundle), str(tmp_path / "empty")]) == 1
    assert "no images in this folder" in capsys.readouterr().err


def test_predict_counts_what_it_cannot_read(bundle, folder, capsys):
    for name in ("d.HEIC", "e.heic", "f.mp4", "notes.txt"):
        (folder / name).touch()
    main(["predict", str(bundle), str(folder), "--json"])
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 3
    text = f"3 files of {folder} are left out beside 3 images, since their formats are not read: 2 x .heic, 1 x .mp4."
    assert text in captured.err


def test_check(bundle, capsys):
    assert main(["check", str(bundle)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "8 files intact"
    assert [line.split(": ")[0] for line in lines[1:5]] == [
        "golden/000.png",
        "golden/001.png",
        "golden/000.png (onefile.onnx)",
        "golden/001.png (onefile.onnx)",
    ]
    assert all(": OK (" in line for line in lines[1:5])
    assert lines[5].startswith("OK: 4 golden answers, fp32 on ")


def golden(bundle, change):
    path = bundle / "golden" / "golden.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    toy.write_vfm_json(bundle)


def test_check_finds_another_score(own_bundle, capsys):
    golden(own_bundle, lambda v: v["images"][1]["scores"].__setitem__(0, 0.999))
    assert main(["check", str(own_bundle)]) == 1
    captured = capsys.readouterr()
    assert "golden/000.png: OK" in captured.out
    assert "golden/001.png: DIFFERS" in captured.out
    assert "2 of 4 golden images answer otherwise than at export" in captured.err


def test_check_finds_a_difference_just_beyond_the_tolerance(own_bundle):
    def shift(amount):
        def change(values):
            values["images"][0]["scores"][0] += amount

        golden(own_bundle, change)

    shift(0.0009)
    assert main(["check", str(own_bundle)]) == 0
    shift(0.0003)
    assert main(["check", str(own_bundle)]) == 1


def test_check_finds_another_label(own_bundle, capsys):
    golden(own_bundle, lambda v: v["images"][0].update(label="dog"))
    assert main(["check", str(own_bundle)]) == 1
    assert ", not dog;" in capsys.readouterr().out


def test_check_finds_another_onefile(own_bundle, capsys):
    toy.save_onefile(
        own_bundle / "onefile.onnx", json.dumps(toy.CONTRACT), weights=toy.WEIGHTS * np.float32(0)
    )
    toy.write_vfm_json(own_bundle)
    assert main(["check", str(own_bundle)]) == 1
    captured = capsys.readouterr()
    assert "golden/000.png: OK" in captured.out
    assert "golden/000.png (onefile.onnx): DIFFERS" in captured.out


def test_check_finds_damage(own_bundle, capsys):
    with (own_bundle / "model.onnx").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"?")
    assert main(["check", str(own_bundle)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "model.onnx is damaged: its sha256 is" in captured.err
    assert captured.err.count("\n") <= 10


def test_check_without_golden_images_is_no_success(own_bundle, capsys):
    for path in (own_bundle / "golden").iterdir():
        path.unlink()
    toy.write_vfm_json(own_bundle)
    assert main(["check", str(own_bundle)]) == 1
    assert "has no golden images, so its answers cannot be checked" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda v: v.pop("tolerance"), "malformed (KeyError('tolerance'))"),
        (lambda v: v.update(tolerance=0), "no images or no tolerance"),
        (lambda v: v.update(images=[]), "no images or no tolerance"),
        (lambda v: v["images"][0].update(file="../x.png"), "the bundle does not list"),
        (
            lambda v: v["images"][0].update(scores=[1.0]),
            "The scores have shape [1] but there are 3 labels",
        ),
        (lambda v: v["images"][0].update(scores="x"), "malformed"),
    ],
)
def test_check_refuses_malformed_golden(own_bundle, change, text, capsys):
    golden(own_bundle, change)
    assert main(["check", str(own_bundle)]) == 1
    assert text in capsys.readouterr().err


@pytest.fixture
def answers(bundle, tmp_path):
    """What another client writes of the golden images, changed as a test says; gives the file."""

    def write(change=lambda images: None):
        model = vfm_runtime.load(bundle, device="cpu")
        images = []
        for path in sorted((bundle / "golden").glob("*.png")):
            outputs = model.run(model.prepare(path))
            values = {n: {"data": a.ravel().tolist(), "dims": a.shape} for n, a in outputs.items()}
            images.append({"file": path.name, "outputs": values})
        change(images)
        (tmp_path / "answers.json").write_text(json.dumps({"images": images}))
        return str(tmp_path / "answers.json")

    return write


def test_answers_of_another_client_are_judged(bundle, answers, capsys):
    assert main(["check", str(bundle), "--answers", answers()]) == 0
    assert "golden/000.png: OK (" in capsys.readouterr().out
    path = answers(lambda images: images[1]["outputs"]["scores"]["data"].reverse())
    assert main(["check", str(bundle), "--answers", path]) == 1
    captured = capsys.readouterr()
    assert "golden/000.png: OK (" in captured.out
    assert "golden/001.png: DIFFERS (" in captured.out
    assert "golden images answer otherwise than at export" in captured.err


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda images: images.pop(0), "has no answer to golden/000.png"),
        (lambda images: images[0].pop("outputs"), "holds no answers to golden images (KeyError"),
        (
            lambda images: images[0]["outputs"]["scores"].update(dims=[7]),
            "first of dims is [7], not 1",
        ),
        (lambda images: images[0]["outputs"]["scores"].update(dims=[-1]), "first of dims is [-1]"),
        (lambda images: images[0]["outputs"]["scores"].update(dims=[1, 7]), "(ValueError("),
        (lambda images: images[0]["outputs"]["scores"].update(dims=[]), "(IndexError("),
        (
            lambda images: images[0]["outputs"]["scores"].update(data=[10**400] * 3),
            "(OverflowError",
        ),
        (
            lambda images: images[0]["outputs"]["scores"].update(data=[None] * 3),
            "answered with NaN",
        ),
    ],
)
def test_malformed_answers_are_refused(bundle, answers, change, text, capsys):
    assert main(["check", str(bundle), "--answers", answers(change)]) == 1
    assert text in capsys.readouterr().err


def test_info(bundle, capsys):
    assert main(["info", str(bundle), "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "labels     3: ant, bee, cat\n" in text
    assert "size       16 x 16" in text
    assert "device     cpu\n" in text
    assert f"{(bundle / 'model.onnx').stat().st_size:,} B  model.onnx\n" in text


def test_info_json(bundle, capsys):
    assert main(["info", str(bundle), "--device", "cpu", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["contract"] == toy.CONTRACT
    assert facts["device"] == "cpu"
    assert facts["files"]["card.md"] == (bundle / "card.md").stat().st_size
    assert len(facts["files"]) == 8


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], f"Name a command: {COMMANDS}"),
        (["predct"], f"no command 'predct'. Did you mean 'predict'? Commands: {COMMANDS}"),
        (["zzz"], f"no command 'zzz'. Commands: {COMMANDS}"),
        (["--json", "info"], "Options come after the command"),
        (["predict"], "the following arguments are required: BUNDLE, IMAGE_OR_FOLDER"),
        (["predict", "b", "i", "--tpo", "3"], "has no option '--tpo'. Did you mean '--top'?"),
        (
            ["predict", "b", "i", "--batch", "3"],
            "has no option '--batch'. Did you mean '--batch-size",
        ),
        (["predict", "b", "i", "--batch_size", "x"], "argument --batch-size: 'x' is not a whole"),
        (["predict", "b", "i", "--batch_size=0"], "argument --batch-size: '0' is not a whole"),
        (["serve", "b", "--max_batch", "x"], "argument --max-batch: invalid int value: 'x'"),
        (["predict", "b", "i", "--top", "0"], "'0' is not a whole number from 1 up"),
        (["predict", "b", "i", "--batch-size", "x"], "'x' is not a whole number from 1 up"),
        (["predict", "b", "i", "--device", "gpu"], "invalid choice: 'gpu'"),
        (["check", "b", "--jsn"], "has no option '--jsn'. "),
        (["check", "b", "more"], "'more' is one word too many"),
    ],
)
def test_misuse(words, text, capsys):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert text in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") <= 10
    assert captured.out == ""


@pytest.mark.parametrize("command", ["predict", "check", "info"])
def test_missing_bundle(command, tmp_path, capsys):
    words = [command, str(tmp_path / "nowhere")] + ["x.png"] * (command == "predict")
    assert main(words) == 1
    assert "There is no bundle at" in capsys.readouterr().err
    with pytest.raises(vfm_runtime.BundleError):
        main([*words, "--debug"])


def test_model_that_answers_nan_has_no_traceback(own_bundle, folder, capsys):
    weights = toy.WEIGHTS * np.float32("nan")
    toy.save_model(own_bundle / "model.onnx", json.dumps(toy.CONTRACT), weights=weights)
    toy.write_vfm_json(own_bundle)
    assert main(["predict", str(own_bundle), str(folder / "a.png")]) == 1
    assert "error: The model answered with NaN" in capsys.readouterr().err


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vfm-runtime {vfm_runtime.__version__}\n"
    assert main(["predict", "--help"]) == 0
    assert "--batch-size" in capsys.readouterr().out


def test_as_a_program(bundle, folder):
    command = [sys.executable, "-m", "vfm_runtime.cli", "predict", str(bundle), str(folder)]
    done = subprocess.run(
        [*command, "--device", "cpu"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 2
    assert done.stderr.splitlines() == [done.stderr.strip()]
    assert "Traceback" not in done.stderr
