"""Two tasks that the packages do not know go the whole way: trained, exported, replayed, asked, drawn, served."""

import io
import json

import numpy as np
import pytest
import torch
import vfm_runtime
from lightning.pytorch import Trainer
from PIL import Image
from starlette.testclient import TestClient
from vfm_runtime.cli import main as runtime
from vfm_runtime.server.app import create_app
from vfm_runtime.server.settings import Settings

import vfm
from tests.toys.runtime import Mask, Numbers
from tests.toys.training import MaskData, MaskTask, NumbersData, NumbersTask, draw
from vfm.bundle.export import export
from vfm.tasks import Optim

TOYS = {"numbers": (NumbersTask, NumbersData, Numbers), "mask": (MaskTask, MaskData, Mask)}


@pytest.fixture(scope="module", params=TOYS)
def made(request, tmp_path_factory):
    """A trained toy, its photos and its bundle; tests change nothing."""
    task_class, data_class, prediction = TOYS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    task = task_class(
        "test_convnext" if request.param == "mask" else "test_vit",
        pretrained=False,
        optim=Optim(lr=3e-3),
    )
    trainer = Trainer(
        default_root_dir=folder, max_epochs=4, accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(task, datamodule=data_class())
    (loss,) = (r["test/loss"] for r in trainer.test(task, datamodule=data_class(), verbose=False))
    images = folder / "images"
    images.mkdir()
    for number in range(8):
        Image.fromarray(draw(1000 + number)).save(images / f"{number}.png")
    checkpoint = folder / "checkpoints" / "last.ckpt"
    bundle = export(
        checkpoint,
        images=images,
        out=folder / "bundle",
        calibrate=True,
        num_images=8,
        trust=("tests",),
    )
    return request.param, loss, checkpoint, images, bundle, prediction


def test_it_learned_and_agrees(made):
    name, loss, checkpoint, images, bundle, prediction = made
    assert loss < {"numbers": 0.02, "mask": 0.3}[name]
    parity = json.loads((bundle / "parity.json").read_text())
    assert parity["passed"]
    contract = json.loads((bundle / "vfm.json").read_text())["contract"]
    assert (contract["task"], contract["format"]) == (name, 2)
    assert contract["package"] == "toy-tasks"
    assert contract["rules"]["temperature"] == 1.0  # calibrated
    assert f"task: {name}" in (bundle / "card.md").read_text().lower().replace("*", "")
    path = images / "0.png"
    torch_side = vfm.load(checkpoint, device="cpu", trust=("tests",)).predict(path)
    onnx_side = vfm_runtime.load(bundle, device="cpu").predict(path)
    assert type(torch_side) is type(onnx_side) is prediction
    assert not torch_side.compare(onnx_side).changed
    assert torch_side.compare(onnx_side).difference < 1e-3


def test_it_is_right(made):
    name, _, _, images, bundle, _ = made
    model = vfm_runtime.load(bundle, device="cpu")
    pixels = draw(1000).astype(float) / 255
    prediction = model.predict(images / "0.png")
    if name == "numbers":
        assert prediction.values["red"] == pytest.approx(pixels[..., 0].mean(), abs=0.15)
    else:
        # Pasted back to the picture's own size.
        assert prediction.classes.shape == pixels.shape[:2] == (48, 64)
        assert (prediction.classes == (pixels.mean(-1) > 0.5)).mean() > 0.85
    together = model.predict([draw(1000), draw(1001)])
    assert not together[0].compare(prediction).changed


def test_it_is_checked_and_asked_on_the_shell(made, tmp_path, capsys):
    name, _, _, images, bundle, _ = made
    assert runtime(["check", str(bundle), "--device", "cpu"]) == 0
    assert "OK: 3 golden answers" in capsys.readouterr().out
    assert runtime(["info", str(bundle), "--device", "cpu"]) == 0
    assert f"task       {name}" in capsys.readouterr().out
    words = ["predict", str(bundle), str(images), "--device", "cpu", "--draw", str(tmp_path)]
    assert runtime(words) == 0
    assert capsys.readouterr().out.startswith(f"{images / '0.png'}: ")
    drawn = np.asarray(Image.open(next(tmp_path.rglob("0.png.png"))))
    assert drawn.shape == (48, 64, 3)
    assert (drawn != draw(1000)).any()
    assert runtime([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["task"] == name


def test_it_is_served(made):
    name, _, _, images, bundle, _ = made
    data = (images / "0.png").read_bytes()
    with TestClient(
        create_app(Settings(bundles=(f"toy={bundle}",), device="cpu")), base_url="http://localhost"
    ) as client:
        answer = client.post(
            "/predict?draw=true", content=data, headers={"Content-Type": "image/png"}
        )
        assert answer.status_code == 200, answer.text
        assert answer.json()["task"] == answer.json()["answer"]["task"] == name
        assert answer.json()["drawn"].startswith("data:image/jpeg;base64,")
        (listed,) = client.get("/v2/models").json()["models"]
        assert (listed["task"], listed["thresholds"], listed["draws"]) == (name, None, True)
        meta = client.get("/v2/models/toy").json()
        pixels = vfm_runtime.load(bundle, device="cpu").prepare(io.BytesIO(data).getvalue())[
            "pixels"
        ]
        port = meta["inputs"][0]
        question = {
            "inputs": [
                {
                    "name": port["name"],
                    "shape": list(pixels.shape),
                    "datatype": port["datatype"],
                    "data": pixels.ravel().tolist(),
                }
            ]
        }
        outputs = client.post("/v2/models/toy/infer", json=question).json()["outputs"]
        assert [one["name"] for one in outputs] == [one["name"] for one in meta["outputs"]]
