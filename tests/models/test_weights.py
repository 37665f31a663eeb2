from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vfm.models.backbone import Backbone
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
    assert f"Missing: {', '.join(missing[:4])} and {len(missing) - 4} more." in text
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
