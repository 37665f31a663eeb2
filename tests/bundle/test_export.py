"""What a bundle holds, and when none is written."""

import json
import shutil
from importlib.metadata import version

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import vfm_runtime
from vfm_runtime.bundle.contract import Contract
from vfm_runtime.bundle.manifest import hash_file

from tests.bundle.in_memory import export_task
from tests.conftest import LABELS
from vfm.bundle import ExportError, Parity, ParityError
from vfm.bundle.export import export
from vfm.cli import main

ORIGIN = {"versions": {}, "seed": 0, "data": None, "weights": None}
FILES = {
    *("bom.cdx.json", "card.md", "model.onnx", "onefile.onnx", "parity.json", "preprocess.onnx"),
    "vfm.json",
    *("golden/000.png", "golden/001.png", "golden/002.png", "golden/golden.json"),
}


def files(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def opset(path):
    return {o.domain: o.version for o in onnx.load(path, load_external_data=False).opset_import}[""]


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def pixels_of(task, count):
    random = np.random.default_rng(count)
    return random.integers(0, 256, (count, *task.preprocess.size, 3), dtype=np.uint8)


def torch_scores(task, pixels):
    with torch.inference_mode():
        return task.answer(torch.from_numpy(pixels))["scores"].numpy()


@pytest.fixture
def quick(exported, monkeypatch):
    """Exporting copies the graphs that were made before; everything else is as always."""

    def copy(folder, *_):
        for name in ("preprocess.onnx", "model.onnx"):
            shutil.copy(exported.folder / name, folder / name)

    monkeypatch.setattr("vfm.bundle.export._write_graphs", copy)
    return exported


one_model = pytest.mark.parametrize("exported", ["test_efficientnet"], indirect=True)


def test_folder(exported):
    assert files(exported.folder) == FILES
    listed = json.loads((exported.folder / "vfm.json").read_text())["files"]
    assert listed == {name: hash_file(exported.folder / name) for name in FILES - {"vfm.json"}}
    # No draft stays beside it.
    assert [p.name for p in exported.folder.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("name", "inputs", "outputs"),
    [
        ("preprocess.onnx", [("image", "tensor(uint8)")], [("pixels", "tensor(uint8)")]),
        ("model.onnx", [("pixels", "tensor(uint8)")], [("scores", "tensor(float)")]),
        ("onefile.onnx", [("image", "tensor(uint8)")], [("scores", "tensor(float)")]),
    ],
)
def test_graph(exported, name, inputs, outputs):
    path = exported.folder / name
    ports = session(path)
    assert [(p.name, p.type) for p in ports.get_inputs()] == inputs
    assert [(p.name, p.type) for p in ports.get_outputs()] == outputs
    shape = ports.get_inputs()[0].shape
    symbolic = [isinstance(side, str) for side in shape]
    assert symbolic == ([True] + [False] * 3 if name == "model.onnx" else [True, True, False])
    model = onnx.load(path)
    assert opset(path) == 20
    contract = Contract.from_json({p.key: p.value for p in model.metadata_props}["vfm"])
    assert contract.labels == LABELS
    assert contract.backbone == exported.task.backbone.name
    assert contract.preprocess == json.loads(json.dumps(exported.task.preprocess.to_dict()))
    assert contract.versions["torch"] == version("torch")
    # Where the exporter was called from is nobody's business.
    assert not [n.name for n in model.graph.node if n.metadata_props or n.doc_string]
    assert ".py" not in str(model.metadata_props).replace('"python"', "")


@pytest.mark.parametrize("count", [1, 2, 5])
def test_batch_of_any_size(exported, count):
    pixels = pixels_of(exported.task, count)
    scores = session(exported.folder / "model.onnx").run(None, {"pixels": pixels})[0]
    assert scores.shape == (count, len(LABELS))
    np.testing.assert_allclose(scores, torch_scores(exported.task, pixels), atol=1e-4)


def test_card_has_the_results(exported):
    card = (exported.folder / "card.md").read_text()
    assert f"\n# {exported.task.backbone.name}, {len(LABELS)} labels\n" in card
    assert "| test | accuracy | 0.5000 | 0.4000 to 0.6000 | 9 |" in card
    assert "| test | macro_f1 |" in card
    assert f"{len(exported.parity.images)} images: largest difference" in card
    assert "none used (random start)" in card


@one_model
@pytest.mark.parametrize("opset", [17, 99])
def test_unknown_opset_is_refused(quick, paths, tmp_path, opset):
    with pytest.raises(ExportError, match=f"--opset is {opset}; choices are 18 to"):
        export_task(quick.task, paths, tmp_path / "b", origin=ORIGIN, results={}, opset=opset)


@pytest.mark.slow
@one_model
def test_large_weights_go_to_their_own_file(exported, paths, tmp_path, monkeypatch):
    monkeypatch.setattr("vfm.bundle.onnx_graphs.MAX_PROTOBUF", 1000)
    folder = tmp_path / "bundle"
    export_task(exported.task, paths, folder, origin=ORIGIN, results={})
    weights = sum(p.numel() * 4 for p in exported.task.parameters())
    assert (folder / "model.onnx.data").stat().st_size > 0.9 * weights
    assert (folder / "model.onnx").stat().st_size < 0.5 * weights
    assert "model.onnx.data" in json.loads((folder / "vfm.json").read_text())["files"]
    assert files(folder) == (FILES - {"onefile.onnx"}) | {"model.onnx.data"}
    moved = folder.rename(tmp_path / "moved")
    before = vfm_runtime.load(exported.folder, device="cpu").predict(paths[:5])
    after = vfm_runtime.load(moved, device="cpu").predict(paths[:5])
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-6)


@one_model
def test_large_weights_do_not_go_into_one_file(exported, paths, tmp_path, monkeypatch):
    def outgrown(path, *_, **__):
        path.with_name("model.onnx.data").touch()

    monkeypatch.setattr("vfm.bundle.export.write_model", outgrown)
    with pytest.raises(ExportError, match="--one_file cannot hold"):
        export_task(exported.task, paths, tmp_path / "b", origin=ORIGIN, results={}, one_file=True)
    assert list(tmp_path.iterdir()) == []


@one_model
def test_a_bundle_is_replaced_only_when_asked(quick, paths, tmp_path):
    folder = tmp_path / "bundle"
    folder.mkdir()
    export_task(
        quick.task, paths, folder, origin=ORIGIN, results={}
    )  # an empty folder is no bundle
    (folder / "mine.txt").touch()
    before = files(folder)
    with pytest.raises(ExportError, match="--overwrite"):
        export_task(quick.task, paths, folder, origin=ORIGIN, results={})
    assert files(folder) == before
    export_task(quick.task, paths, folder, origin=ORIGIN, results={}, overwrite=True)
    assert files(folder) == FILES - {"onefile.onnx"}


@one_model
def test_without_results_the_card_says_so(quick, paths, tmp_path):
    export_task(quick.task, paths, tmp_path / "b", origin=ORIGIN, results={})
    assert "`vfm test` writes them" in (tmp_path / "b" / "card.md").read_text()


@one_model
def test_unreadable_images_are_listed(quick, paths, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG no more")
    parity = export_task(quick.task, [*paths, broken], tmp_path / "b", origin=ORIGIN, results={})
    assert list(parity.skipped) == [str(broken)]
    stored = json.loads((tmp_path / "b" / "parity.json").read_text())
    assert list(stored["skipped"]) == [str(broken)]
    assert stored["skipped"][str(broken)]
    assert stored["num_images"] == len(paths)


@one_model
def test_only_unreadable_images_prove_nothing(quick, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(ParityError, match="None of the 1 images can be read"):
        export_task(quick.task, [broken], tmp_path / "b", origin=ORIGIN, results={})
    assert not (tmp_path / "b").exists()


def save_checkpoint(task, path):
    """What a training run would write of a task."""
    content = {"state_dict": task.state_dict(), "epoch": 0, "global_step": 0}
    task.on_save_checkpoint(content)
    torch.save(content, path)
    return path


@one_model
def test_too_few_images(quick, paths, tmp_path, capsys):
    few = tmp_path / "few"
    few.mkdir()
    for path in paths[:5]:
        shutil.copy(path, few)
    checkpoint = save_checkpoint(quick.task, tmp_path / "best.ckpt")
    words = ["export", str(checkpoint), "--images", str(few), "-o", str(tmp_path / "b")]
    assert main(words) == 1
    assert f"{few} holds 5 images; parity needs at least 32" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
    assert main([*words, "--num_images", "5"]) == 0
    assert json.loads((tmp_path / "b" / "parity.json").read_text())["num_images"] == 5


@one_model
def test_export_from_python(quick, photos, tmp_path):
    checkpoint = save_checkpoint(quick.task, tmp_path / "best.ckpt")
    out = export(checkpoint, images=photos, out=tmp_path / "b", num_images=32)
    assert vfm_runtime.load(out, device="cpu").labels == LABELS


@one_model
def test_command_from_checkpoint_to_check(exported, photos, paths, tmp_path, capsys):
    checkpoint = save_checkpoint(exported.task, tmp_path / "best.ckpt")
    out = tmp_path / "b"
    words = ["export", str(checkpoint), "--images", str(photos), "-o", str(out)]
    assert main([*words, "--opset", "23", "--one_file", "true", "--num_images", "32"]) == 0
    said = capsys.readouterr().out
    assert "Parity on 32 images: largest difference" in said
    assert f"vfm-runtime predict {out}" in said
    assert files(out) == FILES
    assert {opset(out / name) for name in FILES if name.endswith("onnx")} == {23}
    pixels = pixels_of(exported.task, 3)
    scores = session(out / "model.onnx").run(None, {"pixels": pixels})[0]
    np.testing.assert_allclose(scores, torch_scores(exported.task, pixels), atol=1e-4)
    for one, other in zip(
        vfm_runtime.load(out, device="cpu").predict(paths[:5]),
        vfm_runtime.load(exported.folder, device="cpu").predict(paths[:5]),
        strict=True,
    ):
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)


@one_model
def test_damaged_or_foreign_checkpoint(exported, photos, tmp_path, capsys):
    path = tmp_path / "weights.ckpt"
    torch.save(exported.task.state_dict(), path)
    assert main(["export", str(path), "--images", str(photos), "-o", str(tmp_path / "b")]) == 1
    assert "was not written by vfm" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_parity_is_of_the_files_given(exported, paths):
    assert isinstance(exported.parity, Parity)
    assert [image.name for image in exported.parity.images] == [str(path) for path in paths]


@pytest.mark.slow
def test_adapters_are_merged_into_the_graph_and_stay_in_the_task(paths, tmp_path):
    import onnx

    from tests.conftest import make_task

    origin = {"versions": {}, "seed": 0, "data": None, "weights": None}
    sizes = {}
    for how in ("full", "lora", "effort"):
        task = make_task("test_vit", paths, image_size=48, backbone_args={"depth": 1}, adapt=how)
        with torch.no_grad():
            for name, parameter in task.backbone.named_parameters():
                if parameter.requires_grad and how != "full":
                    noise = torch.randn(parameter.shape, generator=torch.manual_seed(0))
                    parameter.add_(0.02 * noise)
                is_adapter = "lora_" in name or "effort_" in name
                assert parameter.requires_grad == (is_adapter or how == "full")
        assert export_task(task, paths[:20], tmp_path / how, origin=origin, results={}).passed
        names = [name for name, _ in task.backbone.named_parameters()]
        assert any(f".{how}_" in name for name in names) == (how != "full")
        sizes[how] = len(onnx.load(tmp_path / how / "model.onnx").graph.node)
    assert sizes["lora"] == sizes["effort"] == sizes["full"]


def test_the_card_holds_the_quote_beside_the_meter(exported, tmp_path):
    from vfm.bundle.card import format_card
    from vfm.tasks.checkpoint import Checkpoint

    meter = {"hours": 1.5, "usd": None, "kwh": None, "energy_source": "not measurable here"}
    span = {"value": 1.25, "low": 1, "high": 2}
    quote = {"hours": span, "usd": None, "kwh": None, "price_source": "no price"}
    (tmp_path / "cost.json").write_text(json.dumps({"quote": quote, "meter": meter}))
    contract = vfm_runtime.load(exported.folder).contract
    origin = {"versions": {}, "seed": 0, "data": None, "weights": None}
    one = Checkpoint(exported.task, origin, path=tmp_path / "best.ckpt")
    text = format_card(contract, exported.parity, {"": one})
    assert "| hours | 1.25 (1 to 2) | 1.5 |\n| $ | - | - |\n| kWh | - | - |" in text
    assert "Energy: not measurable here. No price." in text


def test_the_card_says_what_a_licence_obliges_to(exported):
    from vfm.bundle.card import format_card
    from vfm.tasks.checkpoint import Checkpoint

    contract = vfm_runtime.load(exported.folder).contract
    origin = {"versions": {}, "seed": 0, "data": None, "weights": {"source": "timm:x"}}
    licenses = {"pretrained weights": "dinov3-license"}
    one = {"": Checkpoint(exported.task, origin)}
    text = format_card(contract, exported.parity, one, licenses=licenses)
    assert (
        "Licence of the pretrained weights: dinov3-license; commercial use is allowed; whoever"
        in text
    )
