from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vfm.models.backbone import Backbone
from vfm.models.tensors import (
    UnreadableFileError,
    compute_checksum,
    find_tensors,
    read_metadata,
    read_plain,
    write_tensors,
)
from vfm.models.weights import WeightsError, load_weights

ARGUMENTS = {"embed_dim": 32, "depth": 2, "num_heads": 2}
State = dict[str, Tensor]


def vit(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    backbone = Backbone(
        "vit_tiny_patch16_224", pretrained=False, image_size=32, arguments=ARGUMENTS
    )
    # The norms of a fresh model are alike in every model.
    for parameter in backbone.model.parameters():
        nn.init.normal_(parameter)
    return backbone.model


@pytest.fixture
def source() -> State:
    return {key: value.clone() for key, value in vit(1).state_dict().items()}


@pytest.fixture
def model() -> nn.Module:
    return vit(2)


def require_equal(model: nn.Module, source: State) -> None:
    found = model.state_dict()
    assert found.keys() == source.keys()
    for key, value in source.items():
        assert torch.equal(found[key], value), key


def save(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def prefixed(source: State, prefix: str) -> State:
    return {prefix + key: value for key, value in source.items()}


def test_by_name(model: nn.Module, source: State, tmp_path: Path) -> None:
    path = save(source, tmp_path / "w.pth")
    report = load_weights(model, path)
    require_equal(model, source)
    assert report.source == str(path)
    assert (report.matched, report.total, report.by) == (len(source), len(source), "name")
    assert (report.missing, report.unexpected, report.coverage) == ((), (), 1.0)


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "model.",
        "backbone.",
        "teacher.",
        "module.model.",
        "backbone.model.",
        "module.backbone.model.",
    ],
)
def test_prefixes_are_taken_off(
    model: nn.Module, source: State, tmp_path: Path, prefix: str
) -> None:
    shuffled = dict(reversed(prefixed(source, prefix).items()))
    report = load_weights(model, save(shuffled, tmp_path / "w.pth"))
    require_equal(model, source)
    assert report.by == "name"
    assert report.unexpected == ()


@pytest.mark.parametrize("keys", [["state_dict"], ["model"], ["model", "state_dict"], ["teacher"]])
def test_containers_are_opened(
    model: nn.Module, source: State, tmp_path: Path, keys: list[str]
) -> None:
    content: Any = prefixed(source, "module.")
    for key in keys:
        content = {"epoch": 3, key: content, "note": "text"}
    report = load_weights(model, save(content, tmp_path / "w.ckpt"))
    require_equal(model, source)
    assert report.coverage == 1.0


def test_safetensors(model: nn.Module, source: State, tmp_path: Path) -> None:
    save_file(prefixed(source, "backbone."), tmp_path / "w.safetensors")
    report = load_weights(model, tmp_path / "w.safetensors")
    require_equal(model, source)
    assert report.by == "name"


def test_half_precision_is_widened(model: nn.Module, source: State, tmp_path: Path) -> None:
    halves = {key: value.half() for key, value in source.items()}
    load_weights(model, save(halves, tmp_path / "w.pth"))
    require_equal(model, {key: value.float() for key, value in halves.items()})


def test_classifier_is_left_over(model: nn.Module, source: State, tmp_path: Path) -> None:
    tail = {"head.weight": torch.zeros(10, 32), "head.bias": torch.zeros(10)}
    report = load_weights(model, save(source | tail, tmp_path / "w.pth"))
    require_equal(model, source)
    assert report.unexpected == ("head.weight", "head.bias")
    assert "2 left over" in str(report)
    assert report.to_dict()["unexpected"] == ["head.weight", "head.bias"]


def test_by_order_and_shape(model: nn.Module, source: State, tmp_path: Path) -> None:
    renamed = {f"layer_{number}": value for number, value in enumerate(source.values())}
    renamed |= {"fc.weight": torch.zeros(10, 32), "fc.bias": torch.zeros(10)}
    report = load_weights(model, save(renamed, tmp_path / "w.pth"))
    require_equal(model, source)
    assert (report.by, report.matched, report.missing) == ("order", len(source), ())
    assert report.unexpected == ("fc.weight", "fc.bias")
    assert "by order" in str(report)


def test_order_does_not_guess_at_other_shapes(
    model: nn.Module, source: State, tmp_path: Path
) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    values = list(source.values())
    place = next(i for i, v in enumerate(values) if v.shape != values[i + 1].shape)
    values[place], values[place + 1] = values[place + 1], values[place]
    renamed = {f"layer_{number}": value for number, value in enumerate(values)}
    with pytest.raises(WeightsError):
        load_weights(model, save(renamed, tmp_path / "w.pth"))
    require_equal(model, before)


def test_more_layers_are_no_classifier(model: nn.Module, source: State, tmp_path: Path) -> None:
    renamed = {f"layer_{number}": value for number, value in enumerate(source.values())}
    renamed |= {"more.weight": torch.zeros(64, 32), "more.bias": torch.zeros(10)}
    with pytest.raises(WeightsError):
        load_weights(model, save(renamed, tmp_path / "w.pth"))


def test_names_go_before_order(model: nn.Module, source: State, tmp_path: Path) -> None:
    """Tensors of one shape in another order would fit by shape, to the wrong places."""
    first = [key for key in source if key.startswith("blocks.0.")]
    second = [key for key in source if key.startswith("blocks.1.")]
    rest = [key for key in source if not key.startswith("blocks.")]
    permuted = {key: source[key] for key in rest[:3] + second + first + rest[3:]}
    assert list(permuted) != list(source)
    report = load_weights(model, save(permuted, tmp_path / "w.pth"))
    require_equal(model, source)
    assert report.by == "name"


def test_a_few_missing_tensors_are_reported(
    model: nn.Module, source: State, tmp_path: Path
) -> None:
    own = model.state_dict()["cls_token"].clone()
    given = {key: value for key, value in source.items() if key != "cls_token"}
    report = load_weights(model, save(given, tmp_path / "w.pth"))
    assert report.missing == ("cls_token",)
    assert (report.matched, report.total) == (len(source) - 1, len(source))
    assert report.coverage == pytest.approx(1 - 1 / len(source))
    require_equal(model, source | {"cls_token": own})


def test_too_few_are_refused(model: nn.Module, source: State, tmp_path: Path) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    given = {key: value for key, value in source.items() if not key.startswith("blocks.1.")}
    path = save(given | {"other.weight": torch.zeros(3)}, tmp_path / "w.pth")
    missing = [key for key in source if key.startswith("blocks.1.")]
    with pytest.raises(WeightsError) as caught:
        load_weights(model, path)
    text = str(caught.value)
    kept = len(source) - len(missing)
    assert f"it sets {kept} of {len(source)} tensors" in text
    assert f"Missing: {', '.join(missing[:8])} and {len(missing) - 8} more." in text
    assert "Unexpected: other.weight." in text
    assert "at least 95 % are needed" in text
    require_equal(model, before)


def test_missing_file(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"There is no weights file .*none\.pth"):
        load_weights(model, tmp_path / "none.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_truncated_file(
    model: nn.Module, source: State, tmp_path: Path, suffix: str, share: float
) -> None:
    path = tmp_path / f"w{suffix}"
    save_file(source, path) if suffix == ".safetensors" else torch.save(source, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        load_weights(model, path)


@pytest.mark.parametrize("content", [b"hello, this is text\n", b"0,1,2\n", b"a b\n", b"\x89PNG"])
def test_a_file_of_another_kind(model: nn.Module, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        load_weights(model, path)


@pytest.mark.parametrize("content", [{}, {"a": 1}, [1, 2], {"state_dict": {}}, 3])
def test_no_tensors(model: nn.Module, tmp_path: Path, content: Any) -> None:
    with pytest.raises(WeightsError, match="holds no tensors"):
        load_weights(model, save(content, tmp_path / "w.pth"))


class Evil:
    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.flag,)


def test_code_in_a_pickle_is_not_run(model: nn.Module, source: State, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    for path in (tmp_path / "zip.pth", tmp_path / "plain.pth"):
        content = {**source, "evil": Evil(flag)}
        if path.stem == "zip":
            torch.save(content, path)
        else:
            path.write_bytes(pickle.dumps({"evil": Evil(flag)}))
        with pytest.raises(WeightsError, match="hold objects besides tensors"):
            load_weights(model, path)
        assert not flag.exists()


def test_a_backbone_keeps_the_report(source: State, tmp_path: Path) -> None:
    path = save(source, tmp_path / "w.pth")
    backbone = Backbone(
        "vit_tiny_patch16_224", weights=str(path), image_size=32, arguments=ARGUMENTS
    )
    assert backbone.report is not None
    assert backbone.report.matched == len(source)
    require_equal(backbone.model, source)


def test_position_embeddings_of_another_size_are_resized(source: State, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(source, path)
    large = Backbone("vit_tiny_patch16_224", weights=str(path), image_size=64, arguments=ARGUMENTS)
    assert large.report is not None
    assert large.report.resized == ("pos_embed",)
    assert large.report.coverage == 1.0
    assert "1 resized" in str(large.report)
    grid = large.model.pos_embed[0, 1:].reshape(4, 4, -1).detach()
    corner = source["pos_embed"][0, 1:].reshape(2, 2, -1)[0, 0]
    # Bicubic enlargement of 2 x 2 places: a corner stays nearest to its own.
    others = source["pos_embed"][0, 1:].reshape(4, -1)
    distances = (others - grid[0, 0]).norm(dim=1)
    assert int(distances.argmin()) == 0
    assert torch.allclose(large.model.cls_token, source["cls_token"])
    assert corner.shape == grid[0, 0].shape


def test_names_of_the_original_code_are_translated(tmp_path: Path) -> None:
    small = {"embed_dim": 32, "depth": 2, "num_heads": 2, "init_values": 1e-5}
    made = Backbone(
        "vit_small_patch14_reg4_dinov2", pretrained=False, image_size=28, arguments=small
    )
    # As the authors of DINOv2 name the same tensors.
    own = {k: torch.randn_like(v) for k, v in made.model.state_dict().items()}
    theirs = {k.replace("reg_token", "register_tokens"): v for k, v in own.items()}
    theirs["pos_embed"] = torch.cat([torch.randn(1, 1, 32), own["pos_embed"]], dim=1)
    theirs["mask_token"] = torch.zeros(1, 32)
    torch.save({"teacher": {f"backbone.{k}": v for k, v in theirs.items()}}, tmp_path / "w.pth")
    report = load_weights(made.model, tmp_path / "w.pth")
    assert report.by == "name"
    assert report.matched == report.total
    assert torch.equal(made.model.state_dict()["reg_token"], own["reg_token"])


def test_checksums_tell_before_from_after(model: nn.Module, source: State, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(source, path)
    first, again = load_weights(model, path), load_weights(vit(3), path)
    assert first.before != again.before
    assert first.after == again.after == load_weights(model, path).before
    assert len(first.after) == 16
    assert first.to_dict()["coverage"] == 1.0


def test_less_is_taken_on_request(model: nn.Module, source: State, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({k: v for k, v in source.items() if "blocks.1." not in k}, path)
    with pytest.raises(WeightsError, match=r"--model\.min_coverage"):
        load_weights(model, path)
    report = load_weights(model, path, min_coverage=0.5)
    assert 0.5 < report.coverage < 0.95
    assert all("blocks.1." in name for name in report.missing)
    save_file({"other": torch.zeros(2)}, path)
    with pytest.raises(WeightsError, match="sets 0 of"):
        load_weights(model, path, min_coverage=0.0)


def test_weights_of_another_architecture_are_refused_with_the_names(tmp_path: Path) -> None:
    other = Backbone("test_efficientnet", pretrained=False).model
    save_file(other.state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError) as caught:
        load_weights(vit(1), tmp_path / "weights.safetensors")
    text = str(caught.value)
    assert "does not fit VisionTransformer: it sets 0 of 30 tensors (0.0 %" in text
    assert "Missing: cls_token, pos_embed, patch_embed.proj.weight" in text
    assert "Unexpected: blocks.0.0.bn1." in text
    assert "Give the backbone that this file was trained with (--model.backbone)" in text


def test_written_whole_or_not_at_all(tmp_path: Path, source: State) -> None:
    path = tmp_path / "new" / "weights.safetensors"
    write_tensors(path, source, {"note": "x"})
    assert read_metadata(path) == {"note": "x"}
    assert compute_checksum(find_tensors(read_plain(path))) == compute_checksum(source)
    assert [p.name for p in path.parent.iterdir()] == ["weights.safetensors"]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UnreadableFileError):
        read_metadata(path)


@pytest.mark.parametrize(
    ("tag", "licence"),
    [("", None), (".lvd1689m", "dinov3-license")],
)
def test_a_files_licence_is_its_tags(tag: str, licence: str | None, tmp_path: Path) -> None:
    name = "vit_small_patch16_dinov3"
    plain = Backbone(name, pretrained=False, image_size=32, arguments=ARGUMENTS)
    save_file(plain.model.state_dict(), tmp_path / "w.safetensors")
    loaded = Backbone(
        name + tag, weights=str(tmp_path / "w.safetensors"), image_size=32, arguments=ARGUMENTS
    )
    assert loaded.license == licence
