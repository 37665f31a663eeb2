"""Which tasks may share a backbone, and what their heads are called."""

from pathlib import Path

import pytest
import torch

from tests.tasks.tiny import VIT
from vfm.bundle.multi_head import MultiHeadError, name_checkpoints, require_one_backbone
from vfm.deepfake import DeepfakeHead, DeepfakeTask
from vfm.models.adapt import AdaptOptions
from vfm.models.heads import AttentionPoolHead, DetrHead, MLPHead
from vfm.tasks import ClassificationTask, DetectionTask


def make(head=None, kind=ClassificationTask, seed=0, **changes):
    torch.manual_seed(seed)
    settings = {"backbone": "vit_tiny_patch16_224", "adapt": "linear", "backbone_args": VIT}
    settings |= {"pretrained": False, "image_size": 32, "fit": "squash"} | changes
    return kind(head=head, **settings)


def refusal(*tasks):
    with pytest.raises(MultiHeadError) as caught:
        # As many names as there are tasks, two or three.
        require_one_backbone(dict(zip(("one", "two", "three"), tasks, strict=False)))
    return str(caught.value)


def test_one_backbone_serves_heads_of_every_kind():
    tasks = (
        make(),
        make(MLPHead(8), multilabel=True),
        make(AttentionPoolHead(2)),
        make(DetrHead(num_queries=5), DetectionTask),
    )
    require_one_backbone(dict(zip("abcd", tasks, strict=True)))
    require_one_backbone({"only": tasks[0]})
    # A backbone that does not pool lacks layers; whichever comes first.
    require_one_backbone(dict(zip("dcba", reversed(tasks), strict=True)))


def test_weights_that_differ_are_named():
    one, two = make(), make()
    with torch.no_grad():
        two.backbone.model.blocks[1].attn.qkv.weight[0, 0] += 1e-6
    said = refusal(one, make(), two)
    assert "heads 'one' and 'three' have other weights in their backbones" in said
    assert ": 1 of " in said
    assert "tensors differ, model.blocks.1.attn.qkv.weight. Their --model.adapt is linear" in said
    assert "Train all heads with --model.adapt linear from the same weights" in said
    said = refusal(one, make(seed=1))
    assert "model.cls_token, model.pos_embed, model.patch_embed.proj.weight and " in said


def test_adapters_count_as_weights():
    one, two = make(adapt="effort"), make()
    said = refusal(one, two)
    assert "Their --model.adapt is effort and linear" in said
    assert "effort_u" in said
    assert "effort_u" in refusal(two, one)
    require_one_backbone({"one": one, "two": make(adapt="effort")})
    with torch.no_grad():
        one.backbone.get_parameter("model.blocks.0.attn.qkv.effort_s").add_(1)
    assert "1 of" in refusal(one, make(adapt="effort"))


def test_how_adapters_merge_counts():
    one, two = (make(adapt="lora", adapt_options=AdaptOptions(alpha=a)) for a in (4.0, 8.0))
    assert "--model.adapt_options is " in refusal(one, two)


def test_a_detector_with_other_adapters_is_refused_from_either_side():
    one = make(DetrHead(num_queries=5), DetectionTask, adapt="effort")
    assert "tensors differ" in refusal(one, make())
    assert "tensors differ" in refusal(make(), one)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image_size": 48}, "the preprocessing's size is (32, 32) and (48, 48)"),
        ({"fit": "crop"}, "the preprocessing's fit is squash and crop"),
        (
            {"backbone": "vit_small_patch16_224"},
            "--model.backbone is 'vit_tiny_patch16_224' and 'vit_small_patch16_224'",
        ),
        ({"backbone_args": VIT | {"depth": 1}}, "--model.backbone_args is {'embed_dim': 32"),
    ],
)
def test_the_difference_is_named(changes, said):
    assert said in refusal(make(), make(**changes))


def test_a_deepfake_head_looks_at_crops():
    said = refusal(make(), make(DeepfakeHead(), DeepfakeTask))
    assert "The head 'two' tells real from fake, and looks at crops of faces" in said


def test_nothing_and_names_that_are_none():
    with pytest.raises(MultiHeadError, match="There is no head"):
        require_one_backbone({})
    with pytest.raises(MultiHeadError, match=r"cannot be called 'Big.One'. Give NAME=FILE with a"):
        require_one_backbone({"Big.One": make()})


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["/x/colours/0/checkpoints/best.ckpt"], ["colours"]),
        (["/x/My Shapes-2/checkpoints/last-v1.ckpt"], ["my_shapes_2"]),
        (["/x/colours.ckpt", "/x/shapes.ckpt"], ["colours", "shapes"]),
        (["/x/runs/0/checkpoints/best.ckpt", "/x/sizes/adapter.safetensors"], ["runs", "sizes"]),
        (["/r/0/checkpoints/best.ckpt", "/r/1/checkpoints/best.ckpt"], ["r_0", "r_1"]),
        (["/r/version_3/best.ckpt", "/r/version_4/best.ckpt"], ["r_3", "r_4"]),
        (["/r/best.ckpt", "/r/last.ckpt"], ["r_best", "r_last"]),
        (["/0/1/epoch=3-step=40.ckpt"], ["head"]),
    ],
)
def test_names_come_from_what_says_something(files, names):
    assert name_checkpoints(files) == dict(zip(names, map(Path, files), strict=True))


def test_names_are_given_or_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("epoch=3.ckpt").touch()
    found = name_checkpoints(["a=x/best.ckpt", "/y/b/best.ckpt", Path("epoch=3.ckpt")])
    assert list(found.values()) == [
        Path("x/best.ckpt"),
        Path("/y/b/best.ckpt"),
        Path("epoch=3.ckpt"),
    ]
    assert list(found)[:2] == ["a", "b"]
    assert name_checkpoints(["/r/x=1/best.ckpt"]) == {"x_1": Path("/r/x=1/best.ckpt")}


def test_equal_names_are_refused():
    with pytest.raises(MultiHeadError, match=r"2 heads are called 'a': x.ckpt, /a/best.ckpt. Give"):
        name_checkpoints(["a=x.ckpt", "/a/best.ckpt"])
    with pytest.raises(MultiHeadError, match=r"2 heads are called 'a_best': /x/a/best.ckpt, /y/a/"):
        name_checkpoints(["/x/a/best.ckpt", "/y/a/best.ckpt"])
    with pytest.raises(MultiHeadError, match="cannot be called 'A b'"):
        name_checkpoints(["A b=x.ckpt"])
