"""Every command and every example of the READMEs runs, in their order, in one folder."""

import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import timm
import torch
import vfm_runtime.cli
from PIL import Image

from tests.data.boxes_written import drawn, write
from tests.embed.tiny_pair import write_tiny_pair
from tests.image_folders import write_image_folder
from tests.runtime import toy_deepfake, videos
from tests.runtime.signing import Authority
from vfm.cli import main

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
RESULTS = ROOT / "tests" / "benchmarks" / "RESULTS.md"
PAGES = [ROOT / "README.md", ROOT / "export" / "README.md", *sorted(RECIPES.rglob("*.md"))]
# What a test cannot do: download weights, or train for as long as a user would.
SMALLER = {
    "vfm demo": ["--epochs", "2"],
    "vfm fit --config recipes/classification/finetune.yaml": [
        "--model.backbone",
        "test_efficientnet",
        "--model.pretrained",
        "false",
        "--model.image_size",
        "32",
        "--trainer.max_epochs",
        "1",
    ],
    "vfm fit --config recipes/detection/finetune.yaml": [
        *("--model.backbone", "test_vit", "--model.pretrained", "false"),
        *("--model.image_size", "64", "--model.head.size", "nano", "--trainer.max_epochs", "1"),
    ],
    "vfm fit --config recipes/deepfake/sbi_real_only.yaml": [
        *("--model.backbone", "test_vit", "--model.pretrained", "false"),
        *("--model.image_size", "32", "--trainer.max_epochs", "10"),
        *("--trainer.precision", "32-true", "--data.batch_size", "4"),
        *("--data.val_fraction", "0.3", "--data.test_fraction", "0.3"),
        # So few steps teach nothing of blends, but that the fakes are redder.
        *("--data.mode", "plain", "--model.adapt", "full", "--model.optim.lr", "3e-3"),
    ],
    "vfm calibrate deepfakes": ["--fpr", "0.2"],
    "vfm calibrate runs/0/checkpoints/best.ckpt calibration.csv --group-column site --min": [
        *("--min-precision", "0.3"),
    ],
    "vfm export deepfakes": ["--num_images", "8"],
    # One of so few validation images is more than a point.
    "vfm export runs/0/checkpoints/best.ckpt --images my_images -o small": ["--max_drop", "10"],
    "vfm tune": [
        *("--backbone", "test_vit", "--pretrained", "false", "--image_size", "32"),
        *("--num_images", "24", "--minutes", "0.3"),
    ],
    "vfm fit --config recipes/debug/digits.yaml": ["--trainer.max_epochs", "1"],
    "vfm classify my_images --labels": ["--base", "weights.pt"],
    "vfm doctor my_boxes": ["--base", "other.pt"],
    "vfm export open_clip:": ["--base", "weights.pt", "--num_images", "8"],
    "vfm embed my_images --to pair_store": ["--base", "weights.pt"],
    "vfm embed my_store --migrate": ["--base", "other.pt"],
    "vfm fit --config recipes/distillation/": [
        *("--model.backbone", "test_efficientnet", "--model.image_size", "32"),
        *("--model.teacher", "test_vit", "--model.teacher_weights", "other.pt"),
        *("--model.teacher_size", "null"),
        *("--trainer.max_epochs", "1", "--trainer.precision", "32-true"),
    ],
    "vfm fit --config recipes/ssl/": [
        *("--model.backbone", "test_efficientnet", "--model.backbone_args", "null"),
        *(
            "--model.image_size",
            "32",
            "--model.views.local_size",
            "32",
            "--trainer.max_epochs",
            "1",
        ),
    ],
    "vfm pretrain": [
        *("--backbone", "test_efficientnet", "--image-size", "32", "--batch-size", "8"),
        *("--budget", "60s", "--views.num_local", "2"),
    ],
    "vfm fit --config recipes/contrastive/": [
        *(
            "--model.backbone",
            "test_vit",
            "--model.pretrained",
            "false",
            "--model.image_size",
            "32",
        ),
        *("--model.text.depth", "1", "--trainer.max_epochs", "1", "--trainer.precision", "32-true"),
    ],
}
STAND_INS = {
    "open_clip:ViT-B-32/laion2b_s34b_b79k": "open_clip:tiny_pair",
    "vit_small_patch14_dinov2.lvd142m": "test_vit",
    "tf_efficientnet_lite0": "test_vit",
    "detector.ckpt": "boxes/0/checkpoints/best.ckpt",
    "defect": "class_1",
}
"""Models of the same kind with random weights in files, for those whose weights are fetched."""
MY_RECIPE = """
model:
  class_path: ClassificationTask
  init_args: {backbone: test_vit, pretrained: false, image_size: 32}
data:
  class_path: FolderData
  init_args: {root: my_images, num_workers: 0}
trainer: {max_epochs: 1, default_root_dir: mine}
"""
MY_TABLE = """
model:
  class_path: ClassificationTask
  init_args: {backbone: test_vit, pretrained: false, image_size: 32}
data:
  class_path: TableData
  init_args: {table: calibration.csv, num_workers: 0}
trainer: {max_epochs: 1, default_root_dir: tables}
"""


def blocks(readme: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)


def commands(readme: Path) -> list[str]:
    text = [block.replace("\\\n", "") for block in blocks(readme, "bash")]
    lines = [line for block in text for line in block.splitlines()]
    parts = [part.strip() for line in lines for part in line.split("#")[0].split("&&")]
    return [part for part in parts if part]


def run(command: str) -> None:
    words = [STAND_INS.get(word, word) for word in shlex.split(command)]
    if words[0] == "vfm-runtime":
        assert vfm_runtime.cli.main(words[1:]) == 0, command
        return
    extra = next((more for start, more in SMALLER.items() if command.startswith(start)), [])
    assert main([*words[1:], *extra]) == 0, command


def write_table(table: Path, root: Path) -> None:
    images = sorted(root.rglob("*.png"))
    rows = [f"{path.relative_to(table.parent).as_posix()},{path.parent.name}" for path in images]
    table.write_text("\n".join(["path,label", *rows]) + "\n", encoding="utf-8")


def write_audited(folder: Path) -> None:
    """The data sets of the pages on audits: tables with groups, and boxes that nothing was trained on."""
    images = sorted((folder / "my_images").rglob("*.png"))[::4]
    rows = [
        f"{path.relative_to(folder).as_posix()},{path.parent.name},{'ab'[i % 2]},{i % 3},{i // 2}"
        for i, path in enumerate(images)
    ]
    for name in ("hospital.csv", "table.csv"):
        lines = ["path,label,site,age,patient", *rows]
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_image_folder(folder / "other_images", num_classes=2, images_per_class=10, seed=1)
    boxes = write(folder / "drawn_boxes", "coco", drawn(40, 80)).rename(folder / "coco_folder")
    photos = sorted(boxes.rglob("*.png"))
    rows = [f"{p.relative_to(folder).as_posix()},{i % 2}" for i, p in enumerate(photos)]
    lines = ["path,camera", *rows]
    (folder / "cameras.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_grouped(folder: Path) -> None:
    """Tables of other images than those of the training, with their sites, and of images with texts; a recipe."""
    write_image_folder(
        folder / "new_images", num_classes=3, images_per_class=80, size=[(40, 30)], seed=5
    )
    images = sorted((folder / "new_images").rglob("*.png"))
    rows = [f"{p.relative_to(folder)},{p.parent.name},{'ab'[i % 2]}" for i, p in enumerate(images)]
    (folder / "calibration.csv").write_text("\n".join(["path,label,site", *rows]) + "\n")
    rows = [f"{p.relative_to(folder)},a thing of {p.parent.name}" for p in images]
    (folder / "my_pairs.csv").write_text("\n".join(["path,text", *rows]) + "\n")
    (folder / "my_table.yaml").write_text(MY_TABLE)


def write_portraits(root: Path, start: int = 0) -> None:
    """Photos of a face, and the same in other colours."""
    for index in range(start, start + 12):
        photo = toy_deepfake.face_photo()[index:, : -1 - index]
        for label, shift in (("real", 0.0), ("fake", 0.2)):
            path = root / label / f"{label}-{index:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(toy_deepfake.reddened(photo, shift)).save(path)


def write_examples(folder: Path, images: list[Path]) -> None:
    """The files that the page on embeddings teaches: two mugs, a plate, and one to ask about."""
    names = ["mug1.jpg", "mug2.jpg", "plate1.jpg", "x.jpg"]
    for name, path in zip(names, images[::150], strict=True):
        Image.open(path).convert("RGB").save(folder / name)
    for label, some in (("mug", images[1:4]), ("plate", images[-3:])):
        (folder / "examples" / label).mkdir(parents=True)
        for path in some:
            shutil.copy(path, folder / "examples" / label)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("readme")
    (path / "recipes").symlink_to(ROOT / "recipes")
    write_image_folder(
        path / "my_images", num_classes=3, images_per_class=200, size=[(40, 30), (33, 64)], seed=0
    )
    write_table(path / "my_images.csv", path / "my_images")
    write(path, "coco", drawn(48)).rename(path / "my_boxes")
    write_portraits(path / "my_videos")
    write_portraits(path / "other", start=12)
    assert main(["faces", str(path / "other"), "-o", str(path / "other_faces")]) == 0
    write_tiny_pair(path)
    torch.save(timm.create_model("test_vit").state_dict(), path / "other.pt")
    (path / "my_recipe.yaml").write_text(MY_RECIPE)
    (path / "mine.yaml").write_text(blocks(RECIPES / "cost" / "README.md", "yaml")[0])
    write_examples(path, sorted((path / "my_images").rglob("*.png")))
    write_audited(path)
    write_grouped(path)
    with contextlib.chdir(path):
        yield path


def list_shell():
    pages = [page for page in PAGES if page.parent.name != "export"]
    return [c for p in pages for c in commands(p) if c.split()[0] in ("vfm", "vfm-runtime")]


def test_all_commands_are_read():
    assert len(list_shell()) == 94


@pytest.mark.slow
def test_every_command_and_example_runs(folder, capsys, monkeypatch):
    # As many seconds as a busy machine takes are not spent on a fast one.
    monkeypatch.setattr("vfm.pretrain.command.require_budget", lambda *_: None)
    for command in list_shell():
        if not command.startswith("vfm serve"):  # see test_serving_commands
            run(command)
    shown = capsys.readouterr()
    assert "Parity on" in shown.out
    pages = [page for page in PAGES if page.parent.name != "export"]
    examples = [(page, example) for page in pages for example in blocks(page, "python")]
    assert len(examples) == 7
    for page, example in examples:
        exec(compile(example, str(page), "exec"), {"__name__": "readme"})
    printed = capsys.readouterr().out
    assert "Prediction(" in printed


@pytest.mark.slow
def test_runtime_readme(folder):
    readme = ROOT / "export" / "README.md"
    (folder / "photos").symlink_to(folder / "my_images")
    (folder / "detector").symlink_to(folder / "box_bundle")
    one = next(p for p in (folder / "my_images").rglob("*.png"))
    for name in ("cat.jpg", "a.jpg", "b.png", "photo.jpg"):
        (folder / name).write_bytes(one.read_bytes())
    (folder / "authorities.pem").write_text(Authority("Root").certificate)
    toy_deepfake.build(folder / "deepfake")
    shown = [toy_deepfake.reddened(toy_deepfake.face_photo(), 0.05 * i) for i in range(4)]
    (folder / "clip.mp4").write_bytes(videos.write(shown))
    client = ROOT / "export" / "examples" / "python" / "golden.py"
    answers = subprocess.run(
        [sys.executable, str(client), "bundle/"], check=True, capture_output=True
    )
    (folder / "answers.json").write_bytes(answers.stdout)
    shell = [c for c in commands(readme) if c.startswith("vfm-runtime")]
    assert len(shell) == 9
    for command in shell:
        if " serve " not in command:  # see test_serving_commands
            run(command)
    for example in blocks(readme, "python"):
        exec(compile(example, str(readme), "exec"), {"__name__": "readme"})


@contextlib.contextmanager
def serving(command):
    """The server that a line of a README starts, on another port."""
    port = free_port()
    words = shlex.split(command)
    names = {w.split("=")[0]: w.split("=")[1] for w in words if w.startswith("VFM_")}
    words = [w for w in words if not w.startswith("VFM_")]
    program = str(Path(sys.executable).with_name(words[0]))
    command = [program, *words[1:], "--port", str(port)]
    server = subprocess.Popen(command, env={**os.environ, **names})
    try:
        wait_until_ready(port)
        yield port
    finally:
        server.terminate()
        assert server.wait(60) == 0


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def wait_until_ready(port):
    for _ in range(300):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5)
            return
        time.sleep(0.2)
    pytest.fail("The server does not start.")


def asked(line, port):
    """What a line with curl prints."""
    words = shlex.split(line.replace("localhost:8000", f"localhost:{port}"))
    return json.loads(subprocess.run([*words, "-sS"], check=True, capture_output=True).stdout)


@pytest.mark.slow
def test_serving_commands(folder):
    """After the tests above, which write the bundles."""
    runtime = ROOT / "export" / "README.md"
    (folder / "models" / "dogs").mkdir(parents=True)
    shutil.copytree(folder / "bundle", folder / "models" / "dogs" / "1")
    lines = [c for r in (ROOT / "README.md", runtime) for c in commands(r)]
    short, plain, guarded = [c for c in lines if " serve " in c]
    curls = [c for c in lines if c.startswith("curl")]
    assert len(curls) == 2
    with serving(short) as port:
        assert asked(f"curl localhost:{port}/v2/health/live", port)["live"] is True
    with serving(plain) as port:
        answer, about = [asked(line, port) for line in curls]
    assert answer["answer"]["label"]
    assert about["name"] == "bundle"
    with serving(guarded) as port:
        token = "Authorization: Bearer change-me-to-16-or-more"
        refused = asked("curl localhost:8000/v2/models/dogs", port)
        known = asked(f"curl -H '{token}' localhost:8000/v2/models/dogs", port)
    assert refused["code"] == "unauthorized"
    assert known["versions"] == ["1"]


def test_installation_commands_are_those_that_ci_runs():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").replace(" -q", "")
    installs = [c for c in commands(ROOT / "README.md") if c.startswith("pip install")]
    assert len(installs) == 2
    for command in installs:
        assert command in script


def test_what_is_typed_into_a_shell_is_run_above():
    assert [page for page in PAGES if blocks(page, "sh") or blocks(page, "shell")] == []


def test_files_to_read_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("read these six files")[1]
    paths = re.findall(r"^\d\. `([^`]+)`", section, re.MULTILINE)
    assert len(paths) == 6
    assert all((ROOT / path).is_file() for path in paths)


def test_pages_are_short():
    lengths = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in PAGES}
    assert lengths[ROOT / "README.md"] <= 200
    assert {p: n for p, n in lengths.items() if p.parent.parent == RECIPES and n > 150} == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_links_to_exists(page):
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    broken = []
    for link in links:
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in list_anchors(target)):
            broken.append(link)
    assert broken == []
    scripts = re.findall(r"`(?:python )?(tests/[\w/]+\.py)\b", text)
    assert [script for script in scripts if not (ROOT / script).is_file()] == []


def list_anchors(page):
    """The anchors that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_each_recipe_folder_has_its_line_in_the_index():
    index = (RECIPES / "README.md").read_text(encoding="utf-8")
    pages = [p for p in PAGES if p.parent.parent == RECIPES]
    assert len(pages) >= 6
    assert all(f"({page.parent.name}/README.md)" in index for page in pages)


def test_figures_that_matter_stand_below_with_their_script():
    head, _, rest = RESULTS.read_text(encoding="utf-8").partition("\n## Where")
    rows = [
        [cell.strip() for cell in row.split("|")[1:-1]]
        for row in head.splitlines()
        if "`tests/" in row
    ]
    assert len(rows) >= 10
    for what, figure, source in rows:
        script = source.strip("`")
        assert (ROOT / script).is_file(), what
        sections = [s for s in rest.split("\n## ") if Path(script).name in s]
        assert any(re.search(rf"(?<![\d.]){re.escape(figure)}(?![\d])", s) for s in sections), (
            what,
            figure,
        )
