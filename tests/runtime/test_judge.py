"""Pictures and videos through a whole bundle: crops, model, verdict, pictures, shell."""

import json
import shutil

import numpy as np
import pytest
import vfm_runtime
from PIL import Image
from vfm_runtime.cli import main
from vfm_runtime.deepfake.decision import Decision
from vfm_runtime.deepfake.faces.crop import CropSpec
from vfm_runtime.deepfake.pipeline import DeepfakePipeline
from vfm_runtime.deepfake.task import DeepfakeType
from vfm_runtime.tasks.confidence import AbstainReason

from tests.runtime import toy, toy_deepfake, videos

FACE = toy_deepfake.face_photo()
FAKE = toy_deepfake.reddened(FACE)
BLANK = np.full((100, 150, 3), 127, np.uint8)


@pytest.fixture(scope="module")
def deepfake(tmp_path_factory):
    """A bundle that detects faces; tests must not change it."""
    return toy_deepfake.build(tmp_path_factory.mktemp("deepfake") / "bundle")


@pytest.fixture(scope="module")
def model(deepfake):
    return vfm_runtime.load(deepfake, device="cpu", num_threads=1)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A video that begins as a real face, is a fake one from the middle on and ends without any."""
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    shown = [toy_deepfake.reddened(FACE, 0.04 * i) for i in range(6)]
    path.write_bytes(
        videos.write(shown + [np.full((200, 200, 3), 90 + i, np.uint8) for i in range(2)])
    )
    return path


def make(folder, **rules):
    return vfm_runtime.load(toy_deepfake.build(folder / "bundle", **rules), device="cpu")


def test_a_face_is_found_cut_out_and_judged(model):
    real, fake = model.predict([FACE, FAKE])
    assert (real.label, fake.label) == ("real", "fake")
    (frame,) = fake.frames
    assert 60 < frame.face_px < 160
    left, top, right, bottom = frame.box
    assert left < 100 < right
    assert top < 110 < bottom
    assert frame.heatmap.shape == (4, 4)
    assert frame.size == 64
    assert frame.sharpness > 0


def test_the_answer_is_that_of_the_graph_on_the_crop(model):
    verdict = model.predict(FAKE)
    (crop,) = model.task_type.open(FAKE).images
    logits, heatmaps, distances = toy_deepfake.expected(model.preprocess(crop))
    assert verdict.logit == pytest.approx(logits[0], abs=1e-4)
    np.testing.assert_allclose(verdict.frames[0].heatmap, heatmaps[0], atol=1e-5)
    assert verdict.frames[0].distance == pytest.approx(distances[0], abs=1e-5)
    assert verdict.score == pytest.approx(1 / (1 + np.exp(-logits[0] / 2)), abs=1e-5)


def test_trap_09_a_whole_picture_without_a_face_is_not_judged_as_if_it_were_one(model):
    verdict = model.predict(BLANK)
    assert (verdict.label, verdict.reason, verdict.score) == (
        "undecided",
        AbstainReason.NO_FACE,
        None,
    )
    # Unless it is declared to be a crop.
    assert model.predict(BLANK, cropped=True).score is not None


def test_alone_and_among_others_the_answer_is_the_same(model, clip):
    together = model.predict([FACE, clip, BLANK, FAKE], batch_size=3)
    assert together == [model.predict(source) for source in (FACE, clip, BLANK, FAKE)]


def test_video(model, clip):
    verdict = model.predict(clip)
    assert verdict.is_video
    assert verdict.num_asked == 4
    numbers = [frame.frame for frame in verdict.frames]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) == 3
    logits = [frame.logit for frame in verdict.frames]
    assert logits == sorted(logits)
    assert verdict.logit == pytest.approx(np.mean(logits))
    assert model.predict(clip.read_bytes()) == verdict
    assert model.predict(str(clip)) == verdict


def test_video_that_is_no_face_for_the_most_part(tmp_path):
    strict = make(tmp_path, decision={"min_frames": 0.5, "num_frames": 4})
    pictures = [np.full((200, 200, 3), 60 + 20 * i, np.uint8) for i in range(3)]
    verdict = strict.predict(videos.write([FACE, *pictures]))
    assert (verdict.label, verdict.reason) == ("undecided", AbstainReason.TOO_FEW_FRAMES)
    assert verdict.explanation.startswith("Only 1 of 4 frames can be judged")


def test_small_face(tmp_path):
    small = np.array(Image.fromarray(FACE).resize((64, 64)))
    strict = make(tmp_path, decision={"min_face": 48.0}, crop={"size": 128})
    verdict = strict.predict(small)
    assert (verdict.label, verdict.reason) == ("undecided", AbstainReason.FACE_TOO_SMALL)
    assert strict.predict(FACE).label == "real"


def test_a_crop_of_the_models_own_size_is_never_too_small(model):
    pipeline = DeepfakePipeline(CropSpec(source="cropped", size=32), Decision(min_face=64.0))
    outputs = {"logits": np.ones(1), "heatmaps": np.zeros((1, 2, 2)), "distances": np.zeros(1)}
    crop = FACE[:32, :32]
    assert pipeline.judge_evidence(pipeline.collect_evidence(crop), outputs).label == "fake"
    tiny = pipeline.judge_evidence(pipeline.collect_evidence(crop[:16, :16]), outputs)
    assert tiny.reason == AbstainReason.FACE_TOO_SMALL


def test_blurred_face(tmp_path):
    (sharp,) = make(tmp_path).predict(FACE).frames
    strict = make(tmp_path / "strict", decision={"min_sharpness": 0.5 * sharp.sharpness})
    small = Image.fromarray(FACE).resize((40, 40), Image.Resampling.BILINEAR)
    blurred = np.array(small.resize((200, 200), Image.Resampling.BICUBIC))
    assert strict.predict(blurred).reason == AbstainReason.TOO_BLURRED
    assert strict.predict(FACE).label == "real"


def test_trap_22_which_of_several_faces_counts_is_a_rule_of_the_model(model, tmp_path):
    # The larger face is real, the smaller one fake.
    small = Image.fromarray(FAKE).resize((150, 150))
    both = np.zeros((200, 350, 3), np.uint8) + np.uint8(127)
    both[:, :200] = FACE
    both[:150, 200:] = np.array(small)
    assert model.predict(both).label == "real"
    every = make(tmp_path, crop={"policy": "all"})
    verdict = every.predict(both)
    assert len(verdict.frames) == 2
    assert verdict.label == "fake"
    assert verdict.logit == max(frame.logit for frame in verdict.frames)


def test_tiles_of_a_whole_picture(tmp_path):
    native = make(tmp_path, crop={"source": "native", "tiles": 5})
    verdict = native.predict(FAKE)
    assert len(verdict.frames) == 5
    assert verdict.logit == pytest.approx(np.mean([frame.logit for frame in verdict.frames]))
    assert all(frame.face_px is None and frame.box is None for frame in verdict.frames)
    assert native.predict(FACE[:20, :30]).score is not None


def test_many_faces(tmp_path):
    every = make(tmp_path, crop={"policy": "all"}, decision={"min_face": 20.0})
    face = np.array(Image.fromarray(FACE[20:200, 5:185]).resize((120, 120)))
    crowd = np.tile(face, (5, 6, 1))
    verdict = every.predict(crowd, batch_size=7)
    assert len(verdict.frames) >= 25
    assert verdict.label == "real"


def test_files_that_cannot_be_opened(model, clip, tmp_path):
    broken, noise = tmp_path / "broken.jpg", tmp_path / "noise.mp4"
    broken.write_bytes(b"broken")
    noise.write_bytes(b"noise" * 100)
    found = model.predict([broken, FAKE, noise, clip], errors="return", batch_size=2)
    assert isinstance(found[0], vfm_runtime.ImageError)
    assert isinstance(found[2], vfm_runtime.VideoError)
    assert [found[1].label, found[3].is_video] == ["fake", True]
    with pytest.raises(vfm_runtime.VideoError) as caught:
        model.predict([FAKE, noise])
    assert caught.value.__notes__ == ["It is number 2 of those given."]


def test_model_that_answers_nan(tmp_path):
    broken = make(tmp_path, gain=float("nan"))
    with pytest.raises(ValueError, match="The model answered with NaN"):
        broken.predict(FACE)


def test_scores_and_answers_of_crops(model):
    with pytest.raises(ValueError, match="This model tells real from fake: take `predict`"):
        model.scores(model.preprocess(FACE))
    (verdict,) = model.task_type.predictions(model.run(model.prepare(FAKE)))
    assert verdict.label == "fake"
    assert verdict.frames[0].box is None


def test_only_deepfake_models_take_crops(bundle):
    labels = vfm_runtime.load(bundle, device="cpu")
    with pytest.raises(
        ValueError, match=r"cropped is for models that look at crops.*'classification'"
    ):
        labels.predict(FACE, cropped=True)


def test_there_is_no_deepfake_model_without_its_rules():
    with pytest.raises(
        vfm_runtime.ContractError, match=r"'rules' is None; expected an object with"
    ):
        DeepfakeType(("real", "fake"))
    with pytest.raises(vfm_runtime.ContractError, match=r"\['real', 'fake'\] for the task"):
        DeepfakeType(("fake", "real"), {})


def test_another_number_of_outputs(model):
    opened = model.task_type.open(FACE)
    outputs = model.run(model.prepare(opened.images[0]))
    with pytest.raises(ValueError, match="zip"):
        model.task_type.predict(opened, {**outputs, "distances": np.zeros(2)})


def test_pictures(model, clip):
    drawn = model.predict(FAKE).draw(FAKE)
    assert drawn.shape[1] == 200
    assert drawn.shape[0] > 200
    # The face is heated, the far corner is not.
    assert np.abs(drawn[80:120, 75:125].astype(int) - FAKE[80:120, 75:125]).mean() > 5
    np.testing.assert_array_equal(drawn[:40, :15], FAKE[:40, :15])
    sheet = model.predict(clip).draw(clip)
    assert sheet.shape[1] > 1000


def test_check(deepfake, capsys):
    assert main(["check", str(deepfake), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "OK: 4 golden answers, fp32 on cpu"
    assert lines[1].startswith("golden/000.png: OK (real; ")
    assert lines[4].startswith("golden/001.png (onefile.onnx): OK (fake; ")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"score": 0.2}, "DIFFERS (fake; largest difference"),
        ({"logits": 0.1}, "DIFFERS (fake; largest difference"),
        ({"label": "real"}, "DIFFERS (fake, not real;"),
        ({"reason": "no_face"}, "DIFFERS (fake, not fake (no_face);"),
        ({"score": None}, "DIFFERS"),
        ({"heatmaps": [[0.9] * 4] * 4}, "DIFFERS"),
        ({"heatmaps": [[0.1] * 3] * 3}, "DIFFERS"),
        ({"label": "maybe"}, "malformed (DataError"),
        ({"reason": "tired"}, "malformed (ValueError"),
    ],
)
def test_check_finds_another_golden_answer(deepfake, tmp_path, change, text, capsys):
    own = shutil.copytree(deepfake, tmp_path / "own")
    path = own / "golden" / "golden.json"
    values = json.loads(path.read_text())
    values["images"][1].update(change)
    path.write_text(json.dumps(values))
    toy.write_vfm_json(own, toy_deepfake.contract())
    assert main(["check", str(own), "--device", "cpu"]) == 1
    captured = capsys.readouterr()
    assert text in captured.out + captured.err


def test_golden_row_is_what_check_replays(deepfake, model, tmp_path):
    own = shutil.copytree(deepfake, tmp_path / "own")
    crop = own / "golden" / "000.png"
    row = {"file": "000.png", **model.predict(crop, cropped=True).to_golden()}
    (own / "golden" / "golden.json").write_text(json.dumps({"tolerance": 1e-6, "images": [row]}))
    toy.write_vfm_json(own, toy_deepfake.contract())
    assert main(["check", str(own), "--device", "cpu"]) == 0
    with pytest.raises(ValueError, match="golden answer is that of one crop; this verdict is of 0"):
        model.predict(BLANK).to_golden()


def test_predict_in_the_shell(deepfake, model, clip, tmp_path, capsys):
    folder = shutil.copytree(clip.parent, tmp_path / "in")
    Image.fromarray(FAKE).save(folder / "clip.png")
    Image.fromarray(BLANK).save(folder / "blank.png")
    words = ["predict", str(deepfake), str(folder), "--device", "cpu"]
    assert main([*words, "--draw", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [folder / name for name in ("blank.png", "clip.mp4", "clip.png")]
    verdicts = [model.predict(name) for name in names]
    for line, name, verdict in zip(lines, names, verdicts, strict=True):
        assert line == f"{name}: {verdict.headline()}. {verdict.explanation}"
    assert lines[0].startswith(f"{folder / 'blank.png'}: undecided (no_face). No face was found")
    drawn = sorted(path.name for path in (tmp_path / "out").rglob("*.png"))
    assert drawn == ["blank.png.png", "clip.mp4.png", "clip.png.png"]
    one = ["predict", str(deepfake), str(names[1]), "--device", "cpu", "--json"]
    assert main(one) == 0
    row = json.loads(capsys.readouterr().out)
    assert row == {"image": str(names[1]), **verdicts[1].to_dict()}


def test_crops_in_the_shell(deepfake, capsys):
    crop = deepfake / "golden" / "001.png"
    assert main(["predict", str(deepfake), str(crop), "--cropped", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith(f"{crop}: fake 0.")


def test_misuse_in_the_shell(deepfake, bundle, tmp_path, capsys):
    picture = str(bundle / "golden" / "000.png")
    assert main(["predict", str(bundle), picture, "--cropped"]) == 2
    assert (
        "cuts nothing out of its images: it takes no crops. Leave out --cropped"
        in capsys.readouterr().err
    )
    (tmp_path / "empty").mkdir()
    assert main(["predict", str(deepfake), str(tmp_path / "empty")]) == 1
    assert "no images and no videos in this folder" in capsys.readouterr().err


def test_info(deepfake, tmp_path, capsys):
    assert main(["info", str(deepfake), "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "crop       faces, 64 pixels, margin 1.3, largest face, mtcnn\n" in text
    assert "frames     4 of a video\n" in text
    assert "threshold  0.5 assumed: not calibrated\n" in text
    fitted = toy_deepfake.build(
        tmp_path / "fitted", decision={"threshold": 1.0, "fpr": 0.01, "num_reals": 400}
    )
    assert main(["info", str(fitted), "--device", "cpu"]) == 0
    assert "threshold  0.7311, for 1.0% false alarms, fitted on 400 real ones\n" in (
        capsys.readouterr().out
    )
