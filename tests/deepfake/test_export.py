"""A bundle that tells real from fake: graphs, rules, golden crops, parity on images and videos."""

import json
from dataclasses import replace

import av
import numpy as np
import onnx
import pytest
import torch
import vfm_runtime
from PIL import Image
from vfm_runtime.bundle.contract import Contract
from vfm_runtime.bundle.golden import replay
from vfm_runtime.deepfake.decision import Decision, decide
from vfm_runtime.deepfake.faces.crop import CropSpec
from vfm_runtime.errors import OptionError
from vfm_runtime.media.image import open_image
from vfm_runtime.tasks.groups import GroupRules

import vfm
from tests.bundle.in_memory import export_task
from tests.deepfake.data.faces import write_faces
from tests.runtime.server.conftest import ask_server
from tests.tasks.tiny import trainer
from vfm.bundle import ParityError
from vfm.bundle.card import format_card
from vfm.bundle.export import export
from vfm.bundle.parity import ImageParity, Parity, choose_images
from vfm.cli import main
from vfm.deepfake.data.data import DeepfakeData
from vfm.deepfake.head import DeepfakeHead
from vfm.deepfake.operating_point import OPERATING_POINT, OperatingPoint
from vfm.deepfake.task import DeepfakeTask
from vfm.tasks import BaseTask, Optim
from vfm.tasks.checkpoint import Checkpoint
from vfm.tasks.group_fit import GroupFit

SIDE = 48
ORIGIN = {"versions": {}, "seed": 0, "data": None, "weights": None}
RULES = Decision(
    num_frames=4, temperature=1.5, threshold=-0.2, fpr=0.05, num_reals=40, max_distance=5.0
)


def clip(path, frames):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 4 * 10**6
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """Generated faces as images, and a video of some."""
    root = tmp_path_factory.mktemp("faces")
    write_faces(root, num_identities=8, num_frames=2, size=SIDE)
    paths = sorted((root / "crops").rglob("*.png"))
    (root / "clips").mkdir()
    for number in range(2):
        chosen = paths[number::7][:6]
        clip(root / "clips" / f"{number}.mp4", [open_image(path) for path in chosen])
    return root


@pytest.fixture(scope="module")
def checkpoint(faces, tmp_path_factory):
    """A convolutional net after one epoch, its answers spread out, with an operating point beside it."""
    root = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    task = DeepfakeTask(
        "test_efficientnet",
        DeepfakeHead(patch_width=8, bank_size=16),
        pretrained=False,
        image_size=40,
        adapt="full",
        optim=Optim(lr=1e-3),
    )
    made = trainer(root, max_epochs=1, limit_val_batches=0)
    made.fit(task, datamodule=DeepfakeData(faces, num_workers=0, benign_share=0.0))
    torch.nn.init.normal_(task.head.linear.weight, std=20)
    pixels = np.stack([open_image(path) for path in sorted((faces / "crops").rglob("*.png"))])
    pixels = np.stack([task.preprocess.resize(image)[0] for image in pixels])
    with torch.no_grad():
        task.head.linear.bias -= task.eval()(torch.from_numpy(pixels))["logits"].median()
    path = root / "checkpoints" / "spread.ckpt"
    made.save_checkpoint(path)
    by_camera = GroupRules(
        column="camera",
        criterion="Equal false alarms.",
        general={},
        groups={
            "a": {"threshold": 0.6, "num_reals": 50},
            "b": None,
            "c": {"temperature": 3.0, "threshold": -0.1},  # twice the general one's, half its limit
        },
    )
    point = OperatingPoint(RULES, GroupFit(by_camera, [], "Fakes found", 0.5, 0.6))
    (path.parent / OPERATING_POINT).write_text(json.dumps(point.to_dict()))
    results = {
        "test": {
            "num_samples": 90,
            "num_videos": 30,
            "video_auc": {"value": 0.5, "low": 0.4, "high": 0.6},
            "frame_auc": {"value": 0.5, "low": 0.4, "high": 0.6},
            "warnings": ["SHORTCUT: the files alone tell."],
        }
    }
    (path.parent / "results.json").write_text(json.dumps(results))
    return path


@pytest.fixture(scope="module")
def bundle(checkpoint, faces, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "bundle"
    return export(checkpoint, images=faces, out=out, one_file=True)


def test_graph_and_rules(bundle):
    model = onnx.load(bundle / "model.onnx")
    assert [port.name for port in model.graph.input] == ["pixels"]
    assert [port.name for port in model.graph.output] == ["logits", "heatmaps", "distances"]
    contract = Contract.from_json({p.key: p.value for p in model.metadata_props}["vfm"])
    assert contract.task == "deepfake"
    assert contract.labels == ("real", "fake")
    assert contract.rules == {
        "crop": CropSpec(source="cropped", size=SIDE).to_dict(),
        "decision": RULES.to_dict(),
    }


def test_images_and_videos_are_compared(bundle):
    parity = json.loads((bundle / "parity.json").read_text())
    assert parity["passed"]
    assert parity["max_difference"] < 1e-4
    names = [image["name"] for image in parity["images"]]
    assert sum(name.endswith(".mp4") for name in names) == 2
    assert {image["torch_label"] for image in parity["images"]} == {"real", "fake"}


def test_bundle_and_checkpoint_give_the_same_verdicts(bundle, checkpoint, faces):
    runtime, model = vfm_runtime.load(bundle, device="cpu"), vfm.load(checkpoint, device="cpu")
    sources = [*sorted((faces / "clips").iterdir()), *sorted((faces / "crops").rglob("*.png"))[:6]]
    for ours, theirs in zip(runtime.predict(sources), model.predict(sources), strict=True):
        assert (ours.label, ours.reason, ours.is_video) == (
            theirs.label,
            theirs.reason,
            theirs.is_video,
        )
        assert ours.score == pytest.approx(theirs.score, abs=1e-4)
        assert ours.calibrated
        for frame, other in zip(ours.frames, theirs.frames, strict=True):
            np.testing.assert_allclose(frame.heatmap, other.heatmap, atol=1e-4)
            assert frame.distance == pytest.approx(other.distance, abs=1e-5)
            assert frame.distance > 0
    # As many frames as the rules ask for.
    assert len(runtime.predict(sources[0]).frames) == RULES.num_frames


def test_golden_images_are_crops_and_replay(bundle):
    golden = sorted((bundle / "golden").glob("*.png"))
    assert len(golden) == 3
    assert {Image.open(path).size for path in golden} == {(SIDE, SIDE)}
    replayed = replay(vfm_runtime.load(bundle, device="cpu"))
    assert len(replayed) == 6  # also by onefile.onnx
    assert all(result.passed for result in replayed), [str(result) for result in replayed]


def test_card_says_how_it_judges(bundle):
    text = (bundle / "card.md").read_text()
    assert f"- Crop: cropped, {SIDE} pixels, margin 1.3\n" in text
    assert "- Of a video 4 frames" in text
    assert "-0.2000 on the mean logit over 1.5000, fitted on 40 real videos for 5.0% false" in text
    assert "max_distance 5" in text
    assert "A score is no proof" in text
    assert "| test | video_auc | 0.5000 | 0.4000 to 0.6000 | 30 |" in text
    assert "| test | frame_auc | 0.5000 | 0.4000 to 0.6000 | 90 |" in text
    assert "- test: SHORTCUT: the files alone tell." in text


def test_card_without_calibration(bundle, checkpoint):
    contract = vfm_runtime.load(bundle, device="cpu").contract
    rules = {**contract.rules, "decision": Decision().to_dict()}
    image = ImageParity("x.png", (48, 48), 0.0, False, "real", "real")
    parity = Parity((image,), 1e-3, {}, 1.0, 1.0, "cpu")
    text = format_card(
        replace(contract, rules=rules), parity, {"": Checkpoint(BaseTask.load(checkpoint), ORIGIN)}
    )
    assert "- Threshold: none is calibrated: 0.5 is assumed" in text
    assert "- Undecided outside of: min_face 64, min_frames 0.25\n" in text


def test_faces_are_cut_out_of_photos(tmp_path):
    """The crop of the bundle finds the face itself; photos without one are undecided both ways."""
    from skimage import data

    torch.manual_seed(0)
    task = DeepfakeTask("test_efficientnet", pretrained=False, image_size=40)
    task.head.prepare(task.backbone.info, ("real", "fake"))
    torch.nn.init.normal_(task.head.linear.weight, std=20)
    task.crop = CropSpec(size=64)
    photos = tmp_path / "photos"
    photos.mkdir()
    astronaut = data.astronaut()[:, :400]
    Image.fromarray(astronaut).save(photos / "astronaut.png")
    Image.fromarray(data.brick()).save(photos / "brick.png")
    clip(photos / "clip.mp4", [np.roll(astronaut, 4 * k, 1)[:, :384] for k in range(5)])
    paths = choose_images(photos, 3, videos=True)
    assert [path.suffix for path in paths] == [".png", ".png", ".mp4"]
    parity = export_task(task, paths, tmp_path / "bundle", origin=ORIGIN, results={})
    labels = {image.name.rpartition("/")[2]: image.onnx_label for image in parity.images}
    assert labels["brick.png"] == "undecided (no_face)"
    assert not labels["astronaut.png"].startswith("undecided")
    assert Image.open(tmp_path / "bundle" / "golden" / "000.png").size == (64, 64)
    answer = vfm_runtime.load(tmp_path / "bundle", device="cpu").predict(photos / "clip.mp4")
    assert len(answer.frames) == 5
    assert answer.frames[0].box is not None


@pytest.mark.slow
def test_pictures_without_a_face_prove_nothing(checkpoint, tmp_path):
    from skimage import data

    task = BaseTask.load(checkpoint)
    assert decide([], 1, False, Decision()).is_empty
    task.crop = CropSpec(size=64)
    Image.fromarray(data.brick()).save(tmp_path / "brick.png")
    with pytest.raises(
        ParityError,
        match=r"In none of the 1 images .* run the model on \(undecided \(no_face\)\), so nothing was compared",
    ):
        export_task(task, [tmp_path / "brick.png"], tmp_path / "b", origin=ORIGIN, results={})


def test_too_few_images_and_videos(faces):
    with pytest.raises(ParityError, match=r"holds 2 images and videos; parity needs at least 5"):
        choose_images(faces / "clips", 5, videos=True)
    with pytest.raises(ParityError, match=r"holds 0 images; parity needs at least 5"):
        choose_images(faces / "clips", 5)


def test_the_audit_of_the_bundle_is_that_of_the_checkpoint(checkpoint, bundle, tmp_path, capsys):
    items = write_faces(tmp_path / "other", num_identities=12, num_frames=2, size=SIDE, seed=5)
    rows = [f"{item.path},{'ab'[int(item.identities[0][-1]) % 2]}" for item in items]
    (tmp_path / "cameras.csv").write_text("\n".join(["path,camera", *rows]))
    words = ["--data", str(tmp_path / "other"), "--table", str(tmp_path / "cameras.csv")]
    found = []
    for path in (checkpoint, bundle):
        out = tmp_path / path.name
        assert (
            main(
                [
                    "audit",
                    str(path),
                    *words,
                    "--groups",
                    "camera",
                    "--explain",
                    "1",
                    "-o",
                    str(out),
                    *CPU,
                ]
            )
            == 0
        )
        found.append(json.loads((out / "audit.json").read_text()))
    ours, theirs = found
    assert (ours["is_bundle"], theirs["is_bundle"]) == (False, True)
    maps = [set(each["explain"]["maps"]) for each in found]
    assert maps == [{"grad_cam", "patches", "heatmap"}, {"heatmap"}]
    page = (tmp_path / bundle.name / "audit.html").read_text()
    assert "Without Grad-CAM, which takes gradients: a bundle has none" in page
    for key in ("metrics", "groups", "labels", "num_images", "threshold", "null_scores"):
        assert round_floats(ours[key]) == round_floats(theirs[key])
    assert ours["calibration"]["ece"] == pytest.approx(theirs["calibration"]["ece"], abs=1e-4)
    note = "The model has rules by camera: 18 of 36 videos were judged by those of their group"
    assert all(any(each.startswith(note) for each in one["notes"]) for one in found)
    # The threshold of one group is another than the general one, and its rates are those by it.
    rates = [row["value"] for row in ours["groups"]["comparisons"]]
    plain = main(["audit", str(bundle), *words[:2], "-o", str(tmp_path / "plain"), *CPU])
    result = json.loads((tmp_path / "plain/audit.json").read_text())
    assert plain == 0
    assert rates
    assert "there is no such column: the general rule was audited" in str(result["notes"])
    assert result["metrics"]["true_positive_rate"] != ours["metrics"]["true_positive_rate"]
    assert main(["audit", str(bundle), *CPU]) == 1
    assert "is a bundle, which names no data" in capsys.readouterr().err


CPU = ["--device", "cpu"]


def round_floats(values):
    return json.loads(json.dumps(values), parse_float=lambda text: round(float(text), 5))


def test_each_group_has_its_rules_in_torch_in_the_bundle_and_in_the_server(
    checkpoint, bundle, faces
):
    sides = [vfm.load(checkpoint, device="cpu"), vfm_runtime.load(bundle, device="cpu")]
    crops = sorted((faces / "crops").rglob("*.png"))
    labels, logits, scores = {}, {}, {}
    for group in (None, "a", "b", "c"):
        ours, theirs = (side.predict(crops, group=group) for side in sides)
        labels[group] = [each.label for each in ours]
        assert labels[group] == [each.label for each in theirs]
        assert all(a.compare(b).difference < 1e-4 for a, b in zip(ours, theirs, strict=True))
        logits[group] = np.array([each.logit for each in ours if each.logit is not None])
        scores[group] = np.array([each.score for each in ours if each.logit is not None])
    assert labels[None] == labels["b"] == labels["c"]
    assert labels["a"].count("fake") < labels["b"].count("fake")
    assert scores["c"] == pytest.approx(1 / (1 + np.exp(-logits[None] / 3)))
    assert abs(scores["c"] - scores[None]).max() > 0.05
    for group in "ac":
        answer = ask_server(bundle, crops[0], group)
        verdict = sides[1].predict(crops[0], group=group)
        assert (answer["label"], answer["group_rule"]) == (verdict.label, "own")
        assert answer["score"] == pytest.approx(verdict.score, abs=1e-5)
    for side in sides:
        with pytest.raises(OptionError, match=r"the model knows no such camera\. Choices: a, b, c"):
            side.predict(crops[0], group="d")
    assert "rules by camera" in (bundle / "card.md").read_text().lower()
