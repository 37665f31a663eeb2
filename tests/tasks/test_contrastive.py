"""ContrastiveTask: images and words meet, and the checkpoint and its bundle answer words."""

import json
import subprocess
import sys
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import vfm_runtime
from PIL import Image

import vfm
from tests.embed.tiny_pair import write_tiny_pair
from tests.models.tiny_encoder import write_tiny_encoder
from tests.tasks.test_nonfinite import spoil_features
from tests.tasks.tiny import require_report, trainer
from vfm.cli import main
from vfm.data import FolderData, PairData
from vfm.losses import SigLIPLoss
from vfm.models.text import EncoderTextTower, SmallTextTower
from vfm.tasks import ContrastiveTask, Optim
from vfm.tasks.contrastive import OpenClipTextTower

COLORS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (40, 60, 200)}
TEMPLATES = ["a {} square.", "a photo of a {}."]
QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


def paint(path, color, seed):
    """A square of a color on noise."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 90, (24, 24, 3))
    pixels[4:20, 4:20] = np.clip(np.array(color) + generator.integers(-30, 30, 3), 0, 255)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def make_task(**changes):
    settings = {
        "backbone": "test_efficientnet",
        "text": SmallTextTower(32, 1, 2, context=16, vocab_size=300),
        "dim": 16,
        "image_size": 24,
        "templates": TEMPLATES,
        "optim": Optim(lr=3e-3),
    }
    return ContrastiveTask(**(settings | changes))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Folders of colors."""
    folder = tmp_path_factory.mktemp("colors")
    for split, number in (("train", 32), ("val", 6)):
        for label, (name, color) in enumerate(COLORS.items()):
            for i in range(number):
                paint(folder / split / name / f"{i}.png", color, [split == "val", label, i])
    return folder


@pytest.fixture(scope="module")
def checkpoint(images, tmp_path_factory):
    """A task that has learned the names of colors."""
    L.seed_everything(0, verbose=False)
    task = make_task()
    run = trainer(tmp_path_factory.mktemp("run"), max_epochs=12)
    data = FolderData(images, batch_size=32, num_workers=0, augment="none", bit_depth=None)
    run.fit(task, datamodule=data)
    best = run.checkpoint_callback.best_model_path
    run.validate(task, datamodule=data, ckpt_path=best, verbose=False)
    return Path(best)


def test_words_label_images_by_the_checkpoint(checkpoint, images, capsys):
    results = json.loads((checkpoint.parent / "results.json").read_text())["val"]
    assert results["accuracy"]["value"] == 1.0
    assert results["accuracy_by_class"] == dict.fromkeys(sorted(COLORS), 1.0)
    assert "image_to_text" not in results  # labels are no captions
    page = (checkpoint.parent / "report_val.html").read_text()
    assert "Zero-shot accuracy" in page
    shown = images / "val" / "red"
    main(
        [
            "classify",
            str(shown),
            "--model",
            str(checkpoint),
            "--labels",
            "red,green,blue",
            "--device",
            "cpu",
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert all(": red 0." in line or ": red 1." in line for line in lines)


@pytest.mark.slow
def test_the_bundle_reads_words_without_torch(checkpoint, images, tmp_path):
    bundle = tmp_path / "bundle"
    main(["export", str(checkpoint), "--images", str(images), "--text", "true", "-o", str(bundle)])
    assert {"text.onnx", "tokenizer.json", "bom.cdx.json"} <= {p.name for p in bundle.iterdir()}
    parity = json.loads((bundle / "parity.json").read_text())
    assert parity["texts"]["least_cosine"] > 0.99999
    model, runtime = vfm.load(checkpoint, device="cpu"), vfm_runtime.load(bundle, device="cpu")
    texts = ["a red square.", "blue", "", "a long text " * 20, "日本語 <pad>"]
    np.testing.assert_allclose(model.embed_text(texts), runtime.embed_text(texts), atol=1e-5)
    paths = sorted((images / "val").rglob("*.png"))
    np.testing.assert_allclose(model.embed(paths), runtime.embed(paths), atol=1e-4)
    assert runtime.scale == pytest.approx(model.scale)
    done = subprocess.run(
        [
            *(sys.executable, "-c"),
            "import sys; from vfm_runtime.cli import main; main(sys.argv[1:]); assert 'torch' not in sys.modules",
            *("predict", str(bundle), str(paths[0]), "--labels", "red,green,blue"),
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert paths[0].parent.name in done.stdout


@pytest.mark.slow
def test_a_store_of_its_vectors_is_searched_by_words(checkpoint, images, tmp_path, capsys):
    pytest.importorskip("lancedb")
    store = str(tmp_path / "store")
    words = ["--model", str(checkpoint), "--device", "cpu"]
    assert main(["embed", str(images / "val"), "--to", store, *words]) == 0
    assert main(["search", store, "--text", "a blue square.", "--k", "5", "--json", "true"]) == 0
    nearest = json.loads(capsys.readouterr().out.splitlines()[-1])["neighbors"]
    assert {Path(one["path"]).parent.name for one in nearest} == {"blue"}


def test_its_backbone_starts_another_task(checkpoint):
    task = vfm.ClassificationTask("test_efficientnet", weights=checkpoint, image_size=24)
    assert task.backbone.report.coverage == 1.0
    trained = vfm.load(checkpoint, device="cpu").task.backbone.state_dict()
    for name, tensor in task.backbone.state_dict().items():
        torch.testing.assert_close(tensor, trained[name])


def test_a_second_stage_goes_on_with_both_towers(checkpoint, images, tmp_path):
    data = FolderData(images, batch_size=32, num_workers=0, augment="none")
    task = make_task(weights=checkpoint, image_size=32, optim=Optim(lr=1e-9))
    trainer(tmp_path, fast_dev_run=True).fit(task, datamodule=data)
    first = vfm.load(checkpoint, device="cpu")
    texts = ["a red square.", "blue"]
    np.testing.assert_allclose(task.eval().embed_text(texts), first.embed_text(texts), atol=1e-4)
    torch.testing.assert_close(task.head.projection.weight, first.task.head.projection.weight)
    other = make_task(weights=checkpoint, dim=8)
    with pytest.warns(
        UserWarning, match=r"the image tower is taken alone: dim of its training differ"
    ):
        trainer(tmp_path, fast_dev_run=True).fit(other, datamodule=data)


@pytest.fixture(scope="module")
def pairs(images):
    """A table of captions, of which each image has two."""
    rows = ["path,text,split"]
    for i, path in enumerate(sorted(images.rglob("*.png"))):
        split, color, _ = path.relative_to(images).parts
        if i % 3 == 0 or split == "val":
            word = ("bright", "dull", "odd")[i % 3]
            rows += [
                f"{path.relative_to(images)},{text},{split}"
                for text in (f"a {color} square", f"{word} {color}")
            ]
    (images / "pairs.csv").write_text("\n".join(rows) + "\n")
    return images / "pairs.csv"


@pytest.mark.parametrize("freeze", ["none", "image", "text"])
def test_captions_are_retrieved_and_a_frozen_tower_stays(pairs, tmp_path, freeze, monkeypatch):
    monkeypatch.setenv("VFM_CACHE", str(tmp_path / "cache"))
    L.seed_everything(0, verbose=False)
    task = make_task(freeze=freeze, loss=SigLIPLoss())
    before = {name: p.clone() for name, p in task.backbone.named_parameters()}
    run = trainer(tmp_path, max_epochs=2)
    data = PairData(pairs, batch_size=16, num_workers=0, augment="none")
    run.fit(task, datamodule=data)
    tower = task.text_tower
    changed = any((before[n] != p).any() for n, p in task.backbone.named_parameters())
    assert changed == (freeze != "image")
    assert (tmp_path / "cache" / "features").is_dir() == (freeze == "image")
    assert all(p.requires_grad == (freeze != "text") for p in tower.tower.parameters())
    assert tower.projection.weight.requires_grad
    logged = run.callback_metrics
    assert 0 <= logged["val/text_to_image_recall_at_1"] <= 1
    assert logged["val/loss"].isfinite()
    assert task.bias == pytest.approx(-10, abs=1)
    again = vfm.load(
        run.checkpoint_callback.last_model_path or run.checkpoint_callback.best_model_path,
        device="cpu",
    )
    np.testing.assert_allclose(
        again.embed_text(["a red square"]), task.eval().embed_text(["a red square"]), atol=1e-6
    )


def test_a_step_that_is_no_number_is_done_again_with_the_same_texts(images, tmp_path, monkeypatch):
    monkeypatch.setenv("VFM_CACHE", str(tmp_path / "cache"))
    data = FolderData(images, batch_size=16, num_workers=0, augment="none")
    step = require_report(tmp_path, make_task(freeze="image"), data, spoil_features)
    assert step.keys() == {"image_to_text", "text_to_image"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["open_clip", "encoder"])
def test_other_text_towers_train_and_are_exported(images, tmp_path, kind):
    if kind == "open_clip":
        pytest.importorskip("open_clip")
        (tmp_path / "encoder").mkdir()
        write_tiny_pair(tmp_path / "encoder")
        text = OpenClipTextTower("tiny_pair", base=tmp_path / "encoder" / "weights.pt")
    else:
        pytest.importorskip("transformers")
        text = EncoderTextTower(write_tiny_encoder(tmp_path / "encoder"), context=16)
    task = make_task(text=text)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(task, datamodule=FolderData(images, batch_size=32, num_workers=0, augment="none"))
    assert text.count_cut(["red", "a red square " * 40]) == 1
    (tmp_path / "encoder").rename(tmp_path / "gone")  # the checkpoint has all that it takes
    model = vfm.load(run.checkpoint_callback.best_model_path, device="cpu")
    model.export(tmp_path / "bundle", images=images, num_images=6, text=True)
    texts = ["a red photo.", "cat", "", "a picture of a dog " * 20]
    ours = vfm_runtime.load(tmp_path / "bundle", device="cpu").embed_text(texts)
    np.testing.assert_allclose(model.embed_text(texts), ours, atol=1e-5)


def test_what_cannot_be_contrasted_is_refused(images, pairs, tmp_path):
    for arguments, message in (
        ({"freeze": "both"}, r"freeze is 'both'\. Choices: none, image, text"),
        (
            {"freeze": "image", "adapt": "lora"},
            r"freeze is image, and adapt lora says which weights",
        ),
        ({"dim": 0}, r"dim is 0\. Give 1 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            make_task(**arguments)
    rows = pairs.read_text().splitlines()
    same = images / "same.csv"
    same.write_text(
        "\n".join([rows[0], *(f"{row.split(',')[0]},a square,train" for row in rows[1::2])]) + "\n"
    )
    for task, data, message in (
        (
            make_task(),
            PairData(same, val_fraction=0.0),
            r"have one text, 'a square': there is nothing to contrast",
        ),
        (
            make_task(),
            FolderData(images, batch_size=1),
            r"The batch size is 1, and each image is compared",
        ),
        (
            make_task(templates=Path("none.txt")),
            FolderData(images),
            r"There is no file of templates none\.txt",
        ),
        (
            make_task(templates=["no place"]),
            FolderData(images),
            r"The template 'no place' has 0 times",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            trainer(tmp_path, limit_val_batches=0).fit(task, datamodule=data)


def test_long_captions_are_cut_and_said(images, pairs, tmp_path):
    long = images / "long.csv"
    long.write_text(pairs.read_text().replace("a red square", "a red square " * 30))
    with pytest.warns(
        UserWarning, match=r"1 of \d+ texts are longer than the 16 tokens .* --model.text.context"
    ):
        trainer(tmp_path, fast_dev_run=True).fit(
            make_task(), datamodule=PairData(long, batch_size=16, num_workers=0)
        )


def test_a_budget_of_tokens_is_counted_by_the_tower(images, tmp_path):
    names = sorted(p.relative_to(images).as_posix() for p in images.rglob("*.png"))[:40]
    rows = [
        f"{name},{('a small square of a color ' * 3) if i % 4 == 0 else 'red' + str(i)},"
        for i, name in enumerate(names)
    ]
    table = tmp_path / "pairs.csv"
    table.write_text("\n".join(["path,text,label", *rows, f"{names[0]}x,,square"]) + "\n")
    (images / f"{names[0]}x").write_bytes((images / names[0]).read_bytes())
    data = PairData(
        table, root=images, label_column="label", token_budget=64, batch_size=16, val_fraction=0.0,
        num_workers=0, augment="none",
    )  # fmt: skip
    task = make_task(freeze="image")
    shapes = []
    task.on_train_batch_start = lambda batch, _: shapes.append(
        task.text_tower.tower.tokenize(task.list_texts(batch)).shape
    )
    run = trainer(tmp_path, max_epochs=2, limit_val_batches=0)
    run.fit(task, datamodule=data)
    assert len(shapes) == 2 * run.num_training_batches
    assert sum(n for n, _ in shapes) == 82
    assert all(n * length <= 64 and n <= 16 for n, length in shapes)
    assert {length for _, length in shapes} > {16}
    (images / f"{names[0]}x").unlink()
