"""A small bundle of every kind, exported by vfm from models that were hardly trained, and how one is altered."""

import hashlib
import json

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from vfm_runtime.bundle.contract import Contract
from vfm_runtime.deepfake.decision import Decision
from vfm_runtime.media.image import open_image

from tests.bundle.in_memory import export_task
from tests.conftest import MODELS, make_task
from tests.deepfake.data.faces import write_faces
from tests.runtime import toy
from tests.tasks.tiny import trainer
from vfm.bundle.export import export
from vfm.deepfake.data.data import DeepfakeData
from vfm.deepfake.head import DeepfakeHead
from vfm.deepfake.operating_point import OPERATING_POINT
from vfm.deepfake.task import DeepfakeTask
from vfm.models.heads import DetrHead
from vfm.tasks import DetectionTask, Optim

KINDS = ("classification", "multilabel", "detection", "deepfake")
ORIGIN = {"versions": {}, "seed": 0, "data": None, "weights": None}


def write(kind, paths, folder):
    """Write a bundle of one kind; `folder` is for the bundle and what it is made from."""
    out = folder / "bundle"
    if kind == "deepfake":
        return _deepfake(folder, out)
    makers = {"classification": _classes, "multilabel": _multilabel, "detection": _detector}
    task = makers[kind](paths)
    export_task(task, paths, out, origin=ORIGIN, results={})
    return out


def _classes(paths):
    return make_task("test_efficientnet", paths, **MODELS["test_efficientnet"])


def _multilabel(paths):
    return make_task("test_vit", paths, multilabel=True, **MODELS["test_vit"])


def _detector(paths):
    torch.manual_seed(0)
    task = DetectionTask(
        "vit_tiny_patch16_224",
        DetrHead(num_queries=20, num_groups=2, num_layers=2),
        pretrained=False,
        image_size=64,
        backbone_args={"embed_dim": 96, "depth": 4, "num_heads": 3, "patch_size": 8},
    )
    task.head.prepare(task.backbone.info, ("ant", "bee", "cat"))
    with torch.no_grad():
        task.head.classes.bias += 4  # scores about a half: boxes that are compared
    return task


def _deepfake(folder, out):
    write_faces(folder, num_identities=8, num_frames=2, size=48)
    torch.manual_seed(0)
    head = DeepfakeHead(patch_width=8, bank_size=16)
    options = {"pretrained": False, "image_size": 40, "adapt": "full"}
    task = DeepfakeTask("test_efficientnet", head, optim=Optim(lr=1e-3), **options)
    made = trainer(folder, limit_val_batches=0)
    made.fit(task, datamodule=DeepfakeData(folder, num_workers=0, benign_share=0.0))
    torch.nn.init.normal_(task.head.linear.weight, std=20)  # real ones and fakes
    crops = [open_image(path) for path in sorted((folder / "crops").rglob("*.png"))]
    pixels = torch.from_numpy(np.stack([task.preprocess.resize(crop)[0] for crop in crops]))
    with torch.no_grad():
        task.head.linear.bias -= task.eval()(pixels)["logits"].median()
    path = folder / "run" / "deepfake.ckpt"
    made.save_checkpoint(path)
    rules = Decision(temperature=1.5, threshold=-0.2, fpr=0.05, num_reals=40, max_distance=5.0)
    path.with_name(OPERATING_POINT).write_text(json.dumps(rules.to_dict()))
    return export(path, images=folder / "crops", out=out)


def several(folder):
    """Two heads, made by hand: which class, and which do not apply."""
    toy.build(folder, onefile=False)
    heads = {
        "animal": {"task": "classification", "labels": list(toy.LABELS)},
        "others": {"task": "multilabel", "labels": list(toy.LABELS)},
    }
    contract = {**toy.CONTRACT, "task": "several", "labels": list(heads), "heads": heads}
    _two_headed(folder / "model.onnx", contract)
    rows = []
    golden = json.loads((folder / "golden" / "golden.json").read_text())
    for row in golden["images"]:
        inverse = 1 - np.float32(row["scores"])
        other = {"label": toy.LABELS[int(inverse.argmax())], "scores": inverse.tolist()}
        animal = {"label": row["label"], "scores": row["scores"]}
        rows.append({"file": row["file"], "heads": {"animal": animal, "others": other}})
    (folder / "golden" / "golden.json").write_text(json.dumps({**golden, "images": rows}))
    toy.write_vfm_json(folder, contract)
    return folder


def _two_headed(path, contract):
    model = onnx.load(path)
    helper.set_model_props(model, {"vfm": Contract.from_dict(contract).to_json()})
    one = helper.make_node("Constant", [], ["one"], value_float=1.0)
    nodes = [
        helper.make_node("Identity", ["scores"], ["animal.scores"]),
        helper.make_node("Sub", ["one", "scores"], ["others.scores"]),
    ]
    model.graph.node.extend([one, *nodes])
    del model.graph.output[:]
    for node in nodes:
        shape = ["N", len(toy.LABELS)]
        made = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, shape)
        model.graph.output.append(made)
    onnx.save(model, path)


def alter(folder, change):
    """Change the first row of the golden answers, and the sha256 with it: what only a replay can find."""
    path = folder / "golden" / "golden.json"
    values = json.loads(path.read_text())
    change(values["images"][0])
    path.write_text(json.dumps(values))
    renew(folder, "golden/golden.json")


def renew(folder, name):
    """Give the manifest the sha256 that a file has now."""
    manifest = json.loads((folder / "vfm.json").read_text())
    manifest["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "vfm.json").write_text(json.dumps(manifest))
