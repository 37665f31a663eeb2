"""The way from an image of any size to the model's input, stated once.

`Preprocess` has two halves. `resize` runs per image, in the data workers, on uint8; it is an ONNX graph, the very one
that a bundle carries as `preprocess.onnx`, so that training sees the pixels that production will see. `normalize` runs
inside the model, on the batch.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vfm_runtime.errors import OptionError
from vfm_runtime.media.bit_depth import ValueRange, make_range
from vfm_runtime.media.image import ImageSource, open_image
from vfm_runtime.ort import import_onnxruntime
from vfm_runtime.tasks.tiling import Tiling

if TYPE_CHECKING:
    from onnx import ModelProto

Fit = Literal["crop", "squash", "letterbox"]
Interpolation = Literal["bilinear", "bicubic"]

_PER_MILLE = 1000

# The graph as text (onnx.parser). Sizes and regions are whole numbers: `compute_geometry` says the same in Python.
_CROP = """
    axes = Constant<value_ints = [0, 1]>()
    one = Constant<value_ints = [1]>()
    keep = Constant<value_ints = [{keep}]>()
    scaled_unit = ReduceMin<keepdims = 1>(crossed)
    scaled = Mul(scaled_unit, keep)
    twice = Add(scaled, scaled)
    thousand = Constant<value_ints = [1000]>()
    sides = Mul(other, thousand)
    numerator = Add(twice, sides)
    denominator = Add(sides, sides)
    rounded = Div(numerator, denominator)
    region = Max(rounded, one)
    spare = Sub(given, region)
    start = Div(spare, two)
    end = Add(start, region)
    cut = Slice(image, start, end, axes)
    planes = Transpose<perm = [2, 0, 1]>(cut)
    target = Identity(wanted)
"""
_SQUASH = """
    planes = Transpose<perm = [2, 0, 1]>(image)
    target = Identity(wanted)
"""
_LETTERBOX = """
    planes = Transpose<perm = [2, 0, 1]>(image)
    longest = ReduceMax<keepdims = 1>(crossed)
    area = Constant<value_ints = [{area}]>()
    weighted = Mul(given, area)
    doubled = Add(weighted, weighted)
    numerator = Add(doubled, longest)
    denominator = Add(longest, longest)
    rounded = Div(numerator, denominator)
    target = Max(rounded, two)
"""
_PAD = """
    spare = Sub(wanted, target)
    before = Div(spare, two)
    after = Sub(spare, before)
    none = Constant<value_ints = [0, 0]>()
    pads = Concat<axis = 0>(none, before, none, after)
    fill = Constant<value = float[1, 3, 1, 1] {{{fill}}}>()
    centred = Sub(resized, fill)
    padded = Pad(centred, pads)
    whole = Add(padded, fill)
"""
# Left, top, width and height of what the input covers, width and height of the image: `Geometry.to_row`.
_COVERED = {
    "crop": """
    corner = Cast<to = 1>(start)
    extent = Cast<to = 1>(region)
""",
    "squash": """
    corner = Constant<value_floats = [0.0, 0.0]>()
    extent = Cast<to = 1>(given)
""",
    "letterbox": """
    reals = Cast<to = 1>(given)
    targets = Cast<to = 1>(target)
    inputs = Cast<to = 1>(wanted)
    borders = Cast<to = 1>(before)
    shifted = Mul(borders, reals)
    inner = Div(shifted, targets)
    corner = Neg(inner)
    spread = Mul(inputs, reals)
    extent = Div(spread, targets)
""",
}
_GEOMETRY = """
    original = Cast<to = 1>(given)
    rows_first = Concat<axis = 0>(corner, extent, original)
    columns_first = Constant<value_ints = [1, 0, 3, 2, 5, 4]>()
    row = Gather<axis = 0>(rows_first, columns_first)
    geometry = Unsqueeze(row, zero)
"""
_GRAPH = """
<ir_version: 10, opset_import: ["" : {opset}]>
preprocess (uint8[H, W, 3] image) => (uint8[1, {height}, {width}, 3] pixels{more}) {{
    two = Constant<value_ints = [2]>()
    wanted = Constant<value_ints = [{height}, {width}]>()
    other = Constant<value_ints = [{width}, {height}]>()
    shape = Shape(image)
    zero = Constant<value_ints = [0]>()
    given = Slice(shape, zero, two)
    crossed = Mul(given, other)
    {region}
    batch = Unsqueeze(planes, zero)
    values = Cast<to = 1>(batch)
    frame = Constant<value_ints = [1, 3]>()
    sizes = Concat<axis = 0>(frame, target)
    resized = Resize<antialias = 1, mode = "{mode}", cubic_coeff_a = -0.5, exclude_outside = 1>(values, , , sizes)
    {pad}
    half = Constant<value_float = 0.5>()
    raised = Add(whole, half)
    floored = Floor(raised)
    low = Constant<value_float = 0.0>()
    high = Constant<value_float = 255.0>()
    clipped = Clip(floored, low, high)
    bytes = Cast<to = 2>(clipped)
    pixels = Transpose<perm = [0, 2, 3, 1]>(bytes)
    {geometry}
}}
"""


@dataclass(frozen=True)
class Geometry:
    """Where the pixels of a resized image lie in the original: `x_model = x * scale_x + offset_x`, in pixels."""

    height: int
    """Height of the original image."""
    width: int
    """Width of the original image."""
    scale_x: float
    scale_y: float
    offset_x: float
    offset_y: float

    def to_row(self, size: tuple[int, int]) -> tuple[float, ...]:
        """Return left, top, width and height of what the input covers, then the image's width and height.

        All six in pixels of the original: a point at a fraction `u` of the input's width lies at `left + u * width`.

        Args:
            size: Height and width of the input.
        """
        left, top = -self.offset_x / self.scale_x, -self.offset_y / self.scale_y
        width, height = size[1] / self.scale_x, size[0] / self.scale_y
        return left, top, width, height, float(self.width), float(self.height)

    def to_fractions(
        self, corners: NDArray[np.float32], size: tuple[int, int]
    ) -> NDArray[np.float32]:
        """Return boxes as fractions of the input, [M, 4]: center x and y, width, height.

        Args:
            corners: Left, top, right and bottom in pixels of the original, [M, 4].
            size: Height and width of the input.
        """
        left, top, width, height, _, _ = self.to_row(size)
        moved = (corners - np.array([left, top] * 2)) / np.array([width, height] * 2)
        return convert_corners(moved.astype(np.float32))


@dataclass(frozen=True)
class Preprocess:
    """Size, fit, interpolation and normalisation of a model's input.

    Raises:
        ValueError: A field has a value outside its choices.
    """

    size: tuple[int, int]
    """Height and width in pixels that the model takes."""
    fit: Fit = "crop"
    """How the aspect ratio is met: `crop` cuts the center, `squash` distorts, `letterbox` pads with the mean color."""
    crop_fraction: float = 1.0
    """Share of the largest centred region that `crop` keeps, along each side."""
    interpolation: Interpolation = "bilinear"
    """Filter of the resize; always antialiased."""
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Mean of red, green and blue, in 0..1, that `normalize` subtracts."""
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Standard deviation, in 0..1, that `normalize` divides by."""
    bit_depth: int | None = None
    """Bits that values of images of more than 8 bits use, of which the largest number is white; None for 16."""
    tiles: Tiling | None = None
    """How large images are cut into tiles, each of which is resized by itself; None where they stay whole."""

    def __post_init__(self) -> None:
        if isinstance(self.tiles, Mapping):
            object.__setattr__(self, "tiles", Tiling.from_dict(self.tiles))
        for name in ("size", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, choices in (("fit", get_args(Fit)), ("interpolation", get_args(Interpolation))):
            value = getattr(self, name)
            if value not in choices:
                raise OptionError(f"Preprocess {name} is '{value}'. Choices: {', '.join(choices)}.")
        if len(self.size) != 2 or min(self.size) < 2:
            raise OptionError(
                f"Preprocess size is {self.size}. Give height and width in pixels, 2 or more."
            )
        if not 0 < self.crop_fraction <= 1:
            raise OptionError(
                f"Preprocess crop_fraction is {self.crop_fraction}. Give a number above 0, up to 1."
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise OptionError(
                f"Preprocess mean {self.mean} and std {self.std} need three numbers each, std above 0."
            )
        check_bit_depth(self.bit_depth)

    @classmethod
    def from_timm(
        cls,
        config: Mapping[str, Any],
        *,
        size: tuple[int, int] | None = None,
        fit: Fit | None = None,
    ) -> Preprocess:
        """Return the preprocessing that a timm model was trained for.

        Args:
            config: Settings of the model's input, from `timm.data.resolve_model_data_config`.
            size: Height and width in place of the model's own.
            fit: Fit in place of the model's own; timm's `border` is a letterbox.
        """
        fits: dict[str, Fit] = {"center": "crop", "squash": "squash", "border": "letterbox"}
        return cls(
            size=size or tuple(config["input_size"][1:]),
            fit=fit or fits[config.get("crop_mode") or "center"],
            crop_fraction=float(config["crop_pct"]),
            # timm names filters that few models use (lanczos, nearest); the nearest smooth one stands in.
            interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for a checkpoint or a bundle."""
        values = dataclasses.asdict(self)
        for name in ("bit_depth", "tiles"):
            if values[name] is None:
                del values[name]  # versions before 0.3 do not know them
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @property
    def value_range(self) -> ValueRange | None:
        """Black and white of values of more than 8 bits; None where nothing says them."""
        return None if self.bit_depth is None else make_range(self.bit_depth)

    def add_bit_depth(self, bit_depth: int | None) -> Preprocess:
        """Return the preprocessing with the bit depth that the data says, None for nothing.

        Raises:
            OptionError: The model was trained with another.
        """
        if bit_depth is None:
            return self
        if self.bit_depth not in (None, bit_depth):
            raise OptionError(
                f"bit_depth is {bit_depth}, and the model was trained with {self.bit_depth}. Leave --data.bit_depth "
                "out: images are then read as in its training."
            )
        return dataclasses.replace(self, bit_depth=bit_depth)

    def add_tiles(self, tiles: Tiling | None) -> Preprocess:
        """Return the preprocessing with the tiles that the data says, None for nothing.

        Raises:
            OptionError: The model was trained with others.
        """
        if tiles is None or tiles == self.tiles:
            return self
        if self.tiles is not None:
            raise OptionError(
                f"Tiles of {tiles.side} pixels that overlap by {tiles.overlap:g} are asked for, and the model was "
                f"trained with {self.tiles.side} and {self.tiles.overlap:g}. Leave --data.tile out: images are then "
                "cut as in its training."
            )
        return dataclasses.replace(self, tiles=tiles)

    def open(self, source: ImageSource) -> NDArray[np.uint8]:
        """Open an image as production does, uint8 [H, W, 3], upright and of 8 bits.

        Raises:
            ImageError: It cannot be opened, or its values lie outside of the range.
        """
        return open_image(source, value_range=self.value_range)

    def resize(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], Geometry]:
        """Bring one RGB image, uint8 [H, W, 3], to the model's size, uint8 [h, w, 3]; also say where it came from."""
        height, width = image.shape[:2]
        if (height, width) == self.size and (self.fit != "crop" or self._keep == _PER_MILLE):
            # The graph would give the same pixels.
            return image, self.compute_geometry(height, width)
        (pixels,) = _load_session(self, os.getpid()).run(
            None, {"image": np.ascontiguousarray(image)}
        )
        return pixels[0], self.compute_geometry(height, width)

    def build_graph(self, opset: int = 20, *, geometry: bool = False) -> ModelProto:
        """Build `resize` as an ONNX model: uint8 `image` [H, W, 3] of any size to uint8 `pixels` [1, h, w, 3].

        Args:
            opset: Version of the operators, from 18 on.
            geometry: Whether to give `geometry` too, float32 [1, 6], the numbers of `Geometry.to_row`.
        """
        # Only workers and exports need it, and it takes a third of a second.
        from onnx import checker, parser

        h, w = self.size
        regions = {"crop": _CROP, "squash": _SQUASH, "letterbox": _LETTERBOX}
        region = regions[self.fit].format(keep=self._keep, area=h * w)
        fill = ", ".join(f"{round(mean * 255):.1f}" for mean in self.mean)
        pad = _PAD.format(fill=fill) if self.fit == "letterbox" else "whole = Identity(resized)"
        text = _GRAPH.format(
            opset=opset,
            height=h,
            width=w,
            region=region,
            pad=pad,
            mode="cubic" if self.interpolation == "bicubic" else "linear",
            more=", float[1, 6] geometry" if geometry else "",
            geometry=_COVERED[self.fit] + _GEOMETRY if geometry else "",
        )
        model: ModelProto = parser.parse_model(text)
        model.producer_name = "vfm"
        checker.check_model(model, full_check=True)
        return model

    def normalize(self, pixels: Tensor) -> Tensor:
        """Make the network's input, float32 [N, 3, h, w], from pixels, uint8 [N, h, w, 3], by mean and std."""
        mean, std = (torch.tensor(v, device=pixels.device) for v in (self.mean, self.std))
        # In the layout that every backbone is known to train in: channels last, torch 2.15 crashes on some.
        images = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        # In place: a new tensor for each step of the formula would take longer than the arithmetic.
        return images.mul_(1 / (255 * std).view(3, 1, 1)).sub_((mean / std).view(3, 1, 1))

    def compute_geometry(self, height: int, width: int) -> Geometry:
        """Compute where an original of this size lies in the resized image; as the graphs do, in whole numbers."""
        h, w = self.size
        if self.fit == "squash":
            return Geometry(height, width, w / width, h / height, 0.0, 0.0)
        if self.fit == "letterbox":
            longest = max(height * w, width * h)  # = height * width / scale
            # Two at least: ONNX Runtime does not average when it resizes to a single row or column.
            nh = max(2, (2 * height * h * w + longest) // (2 * longest))
            nw = max(2, (2 * width * h * w + longest) // (2 * longest))
            left, top = (w - nw) // 2, (h - nh) // 2
            return Geometry(height, width, nw / width, nh / height, float(left), float(top))
        scaled = min(height * w, width * h) * self._keep  # = h * w * 1000 * scale
        rh = max(1, (2 * scaled + w * _PER_MILLE) // (2 * w * _PER_MILLE))
        rw = max(1, (2 * scaled + h * _PER_MILLE) // (2 * h * _PER_MILLE))
        top, left = (height - rh) // 2, (width - rw) // 2
        return Geometry(height, width, w / rw, h / rh, -left * w / rw, -top * h / rh)

    @property
    def _keep(self) -> int:
        return round(self.crop_fraction * _PER_MILLE)


@functools.lru_cache(maxsize=8)
def _load_session(preprocess: Preprocess, process: int) -> Any:
    """Load the graph once in each process: a session's threads do not survive a fork."""
    runtime = import_onnxruntime()
    options = runtime.SessionOptions()
    # There is a data worker for every core already.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    model = preprocess.build_graph().SerializeToString()
    return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def check_bit_depth(bit_depth: int | None) -> None:
    """Refuse a number of bits that no image has, with an OptionError."""
    if bit_depth is not None and not 1 <= bit_depth <= 32:
        raise OptionError(
            f"bit_depth is {bit_depth}. Give the bits that the values of your images use, 1 to 32, such as 12; or "
            "leave it out for images of 8 and of 16 bits."
        )


def convert_corners(corners: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return center x and y, width and height of boxes [M, 4] from their corners."""
    low, high = corners[:, :2], corners[:, 2:]
    return np.concatenate([(low + high) / 2, high - low], axis=1)
