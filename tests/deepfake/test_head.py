"""The head for forgeries: shapes, unit features, the bank of training features, export."""

import copy
from functools import partial

import numpy as np
import onnxruntime
import pytest
import torch
from torch.optim.swa_utils import AveragedModel
from vfm_runtime.deepfake.evidence import VERDICT_LABELS

from vfm.deepfake.head import DeepfakeHead
from vfm.models.backbone import Backbone
from vfm.training.ema import update_average
from vfm.types import FeatureInfo, Features

INFO = FeatureInfo(width=12, token_width=5)


def features(number=4, rows=2, columns=3):
    maps = torch.randn(number, 5, rows, columns)
    return Features(torch.randn(number, 12), maps.flatten(2).transpose(1, 2), (maps,))


def head(**arguments):
    torch.manual_seed(0)
    made = DeepfakeHead(**arguments)
    made.prepare(INFO, VERDICT_LABELS)
    return made


@pytest.mark.parametrize("patch_width", [0, 7])
def test_shapes(patch_width):
    made = head(patch_width=patch_width)
    raw = made.train()(features())
    assert {name: tuple(value.shape) for name, value in raw.items()} == {
        "logits": (4,),
        "feature": (4, 12),
        "patches": (4, 2, 3),
    }
    answer = made.decode(raw)
    assert list(answer) == ["logits", "heatmaps", "distances"]
    assert answer["heatmaps"].shape == (4, 2, 3)
    assert 0 <= answer["heatmaps"].min() <= answer["heatmaps"].max() <= 1
    assert all(value.dtype == torch.float32 for value in answer.values())


def test_only_the_direction_counts():
    made, given = head(), features()
    longer = Features(given.pooled * 7, given.tokens, given.maps)
    torch.testing.assert_close(made(given)["logits"], made(longer)["logits"])
    torch.testing.assert_close(made(given)["feature"].norm(dim=1), torch.ones(4))
    free = head(normalize=False)
    assert not torch.allclose(free(given)["logits"], free(longer)["logits"])
    torch.testing.assert_close(free(given)["feature"], free(longer)["feature"])


def test_places_answer_for_their_own_token():
    made, given = head(), features(number=1)
    before = made(given)["patches"]
    tokens = given.tokens.clone()
    tokens[0, 4] += 1  # second row, second column of 2 x 3
    moved = made(Features(given.pooled, tokens, given.maps))["patches"] - before
    assert moved[0, 1, 1].abs() > 1e-6
    assert moved.count_nonzero() == 1


def test_features_without_maps_are_of_a_square():
    given = Features.fill({"pooled": torch.randn(2, 12), "tokens": torch.randn(2, 9, 5)})
    assert head()(given)["patches"].shape == (2, 3, 3)


def test_training_starts_undecided():
    answer = head().decode(head()(features(50)))
    assert answer["logits"].abs().max() < 0.1
    assert (answer["heatmaps"] - 0.5).abs().max() < 0.05


def test_mixed_precision_rounds_no_logit():
    made, given = head(), features()
    torch.nn.init.normal_(made.linear.weight, std=30)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = made(given)["logits"]
    torch.testing.assert_close(mixed, made(given)["logits"])


def test_an_empty_batch_is_answered():
    made = head()
    assert made.decode(made(features(0)))["heatmaps"].shape == (0, 2, 3)


@pytest.mark.parametrize("labels", [("fake", "real"), ("ai", "nature"), ("real", "fake", "other")])
def test_trap_08_other_labels_or_another_order_are_refused(labels):
    with pytest.raises(
        ValueError,
        match=r"The labels are \[.*answers \['real', 'fake'\], in this order.*DeepfakeData",
    ):
        DeepfakeHead().prepare(INFO, labels)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"patch_width": -1}, r"patch_width is -1\. Give 0 or more \(--model\.head\.patch_width\)"),
        ({"bank_size": 0}, r"bank_size is 0\. Give 1 or more \(--model\.head\.bank_size\)"),
    ],
)
def test_arguments_outside_their_range(arguments, match):
    with pytest.raises(ValueError, match=match):
        DeepfakeHead(**arguments)


def test_distances_to_what_was_seen():
    made = head(bank_size=3)
    given = features(2)
    unknown = made.decode(made(given))["distances"]
    assert torch.equal(unknown, torch.zeros(2))
    made.update_memory_bank(made(given)["feature"])
    torch.testing.assert_close(
        made.decode(made(given))["distances"], torch.zeros(2), atol=1e-6, rtol=0
    )
    other = Features(-given.pooled, given.tokens, given.maps)
    expected = 1 - (made(other)["feature"] @ made(given)["feature"].T).amax(1).clamp(min=0)
    torch.testing.assert_close(made.decode(made(other))["distances"], expected, atol=1e-6, rtol=0)


def test_the_oldest_features_leave_the_bank():
    made = head(bank_size=3)
    unit = torch.eye(12)
    made.update_memory_bank(unit[:2])
    made.update_memory_bank(unit[2:4])
    raw = {"feature": unit[:5], "logits": torch.zeros(5), "patches": torch.zeros(5, 1, 1)}
    assert made.decode(raw)["distances"].tolist() == [0, 1, 0, 0, 1]


def test_a_large_batch_is_remembered_evenly():
    """In a batch of pairs the first half may be of one class."""
    made = head(bank_size=4)
    made.update_memory_bank(torch.eye(12))
    kept = made.memory_bank.nonzero()[:, 1].tolist()
    assert kept == [0, 3, 6, 9]


def test_an_average_of_weights_leaves_the_bank_whole():
    made = head(bank_size=4)
    averaged = AveragedModel(made, multi_avg_fn=partial(update_average, 0.9), use_buffers=True)
    for number in range(6):
        made.update_memory_bank(torch.eye(12)[2 * number : 2 * number + 2])
        averaged.update_parameters(made)
    assert torch.equal(averaged.module.memory_bank, made.memory_bank)


def test_the_bank_is_in_the_state():
    made = head(bank_size=4)
    made.update_memory_bank(torch.eye(12)[:2])
    again = copy.deepcopy(head(bank_size=4))
    again.load_state_dict(made.state_dict())
    assert torch.equal(again.memory_bank, made.memory_bank)
    old = made.state_dict()
    old["bank"] = old.pop("memory_bank") + 1  # as version 0.1 called it
    again.load_state_dict(old)
    assert torch.equal(again.memory_bank, made.memory_bank + 1)


class Whole(torch.nn.Module):
    def __init__(self, backbone, made):
        super().__init__()
        self.backbone, self.head = backbone, made

    def forward(self, images):
        return self.head.decode(self.head(self.backbone(images)))


def test_graph_answers_as_torch_for_any_batch(tmp_path):
    torch.manual_seed(0)
    backbone = Backbone(
        "vit_tiny_patch16_224",
        pretrained=False,
        image_size=(64, 96),
        arguments={"embed_dim": 48, "depth": 2, "num_heads": 3},
    )
    backbone.select_outputs(DeepfakeHead.uses)
    made = DeepfakeHead(patch_width=8, bank_size=16)
    made.prepare(backbone.info, VERDICT_LABELS)
    torch.nn.init.normal_(made.linear.weight, std=5)
    whole = Whole(backbone, made).eval()
    with torch.no_grad():
        made.update_memory_bank(made(backbone(torch.randn(5, 3, 64, 96)))["feature"])
    program = torch.onnx.export(
        whole,
        (torch.randn(2, 3, 64, 96),),
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        opset_version=20,
        dynamo=True,
        verbose=False,
    )
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", providers=["CPUExecutionProvider"]
    )
    for number in (1, 3):
        images = torch.randn(number, 3, 64, 96)
        with torch.no_grad():
            expected = whole(images)
        found = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        assert found[1].shape == (number, 4, 6)
        assert found[2].max() > 0
        for ours, theirs in zip(found, expected.values(), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
