"""Small sets of real images, from which a benchmark draws a few of each class to learn from.

    from small_sets import open_set
    textile = open_set("textile")
    train = textile.draw(per_class=10, seed=0)

Image files are written once, below `.cache/small_sets`. What each set is made of:

- textile: textures of fabric, whole, with a local or with a global defect (package conformal-clip-data).
- fashion_mnist: ten kinds of clothes, 28 x 28 pixels (Debian's dataset-fashion-mnist).
- emoji: glyphs of ten kinds on plain grounds and on photos (Debian's fonts-noto-color-emoji). Test and pool share no
  object.
- trees: tiles of aerial photos, with trees or without (package deepforest). Test tiles come from other parts of the
  land.
- lfw: grey faces, and pieces of pictures that are none, 25 x 25 pixels (in scikit-image).
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import shutil
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from skimage import data as photos

CACHE = Path(__file__).parents[2] / ".cache"
ASSETS = CACHE / "assets"
FASHION = Path("/usr/share/datasets/fashion-mnist")
FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
FETCH = "Run: python tests/fetch_assets.py"

Sample = tuple[Path, str]
"""An image file, and the name of its class."""
Picture = tuple[str, str, str, Image.Image]
"""`pool` or `test`, the class, the file's stem, the pixels."""


class MissingSourceError(RuntimeError):
    """What a set is made of is not on this machine."""


@dataclasses.dataclass(frozen=True)
class SmallSet:
    """A pool to draw training images from, and test images that no draw contains."""

    name: str
    pool: list[Sample]
    test: list[Sample]

    @property
    def labels(self) -> list[str]:
        return sorted({label for _, label in self.pool})

    def draw(self, per_class: int, seed: int) -> list[Sample]:
        """Draw as many images of each class, or all of a class that has fewer.

        The draws of a seed contain each other: the first ten of a class are among its first fifty.

        Args:
            per_class: Images of each class.
            seed: Which draw.
        """
        random = np.random.default_rng(seed)
        drawn = []
        for label in self.labels:
            of_class = [sample for sample in self.pool if sample[1] == label]
            order = random.permutation(len(of_class))[:per_class]
            drawn += [of_class[index] for index in order]
        return drawn

    def list_rest(self, drawn: list[Sample]) -> list[Sample]:
        """The images of pool and test that were not drawn."""
        taken = set(drawn)
        return [sample for sample in self.pool + self.test if sample not in taken]


@functools.cache
def open_set(name: str, cache: Path = CACHE / "small_sets") -> SmallSet:
    """Open a set by its name, and write its image files if that was not done before.

    Args:
        name: One of `SETS`.
        cache: The folder below which image files are written.

    Raises:
        MissingSourceError: What the set is made of is not on this machine.
    """
    folder = cache / name
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=cache, prefix=f".{name}."))
        try:
            _write(SETS[name](), draft)
            draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return SmallSet(name, _list_samples(folder / "pool"), _list_samples(folder / "test"))


def _write(pictures: Iterator[Picture], folder: Path) -> None:
    for split, label, stem, image in pictures:
        path = folder / split / label / f"{stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.convert("RGB").save(path, compress_level=1)


def _list_samples(folder: Path) -> list[Sample]:
    return [(path, path.parent.name) for path in sorted(folder.glob("*/*.png"))]


def _require(path: Path, remedy: str) -> Path:
    if not path.exists():
        raise MissingSourceError(f"{path} is missing. {remedy}")
    return path


# Textile


def _read_textile() -> Iterator[Picture]:
    root = ASSETS / "conformal-clip-data/conformal_clip_data/data/textile_images/simulated"
    for folder in sorted(_require(root, FETCH).iterdir()):
        files = sorted(folder.glob("*.jpg"))
        held_out = set(np.random.default_rng(0).permutation(len(files))[:200].tolist())
        for index, path in enumerate(files):
            split = "test" if index in held_out else "pool"
            yield split, folder.name, path.stem, Image.open(path)


# Fashion-MNIST

CLOTHES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")  # fmt: skip


def _read_fashion_mnist() -> Iterator[Picture]:
    _require(FASHION, "Install Debian's package dataset-fashion-mnist.")
    for split, prefix, per_class in (("pool", "train", 300), ("test", "t10k", 100)):
        pixels = _read_idx(FASHION / f"{prefix}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
        kinds = _read_idx(FASHION / f"{prefix}-labels-idx1-ubyte.gz", 8)
        for kind, label in enumerate(CLOTHES):
            for index in np.flatnonzero(kinds == kind)[:per_class]:
                yield split, label, f"{index:05d}", Image.fromarray(pixels[index])


def _read_idx(path: Path, header: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


# Emoji

EMOJI_KINDS = {
    "activity": (
        "⚽⚾🎀🎁🎃🎄🎆🎇🎈🎉🎊🎋🎌🎍🎎🎏🎐🎑🎠🎡🎢🎣🎤🎥🎦🎧🎨🎫🎬🎭🎮🎯🎰🎱🎲🎳🎴🎵🎶🎷🎸🎹🎺🎻🎼🎾🎿🏀🏁🏅"
        "🏆🏈🏉🏏🏐🏑🏒🏓🏸🏹🛷🛹🤿🥁🥅🥇🥈🥉🥊🥋🥌🥍🥎🥏🪀🪁🪂🪃🪄🪅🪆🪕🪗🪘"
    ),
    "animal": (
        "🐀🐁🐂🐃🐄🐅🐆🐇🐈🐉🐊🐋🐌🐍🐎🐏🐐🐑🐒🐓🐔🐕🐖🐗🐘🐙🐚🐛🐜🐝🐞🐟🐠🐡🐢🐣🐤🐥🐦🐧🐨🐩🐪🐫🐬🐭🐮🐯🐰🐱"
        "🐲🐳🐴🐵🐶🐷🐸🐹🐺🐻🐼🐿🕊🕷🦀🦁🦂🦃🦄🦅🦆🦇🦈🦉🦊🦋🦌🦍🦎🦏🦐🦑🦒🦓🦔🦕🦖🦗🦘🦙🦚🦛🦜🦝🦞🦟🦠🦡🦢🦣"
        "🦤🦥🦦🦧🦨🦩🦪🦫🦬🦭🦮🪰🪱🪲🪳"
    ),
    "clothing": (
        "⛑🌂🎒🎓🎩👑👒👓👔👕👖👗👘👙👚👛👜👝👞👟👠👡👢💍🕶🥻🥼🥽🥾🥿🦺🧢🧣🧤🧥🧦🩰🩱🩲🩳🩴🪖"
    ),
    "face": (
        "☹☺😀😁😂😃😄😅😆😇😈😉😊😋😌😍😎😏😐😑😒😓😔😕😖😗😘😙😚😛😜😝😞😟😠😡😢😣😤😥😦😧😨😩😪😫😬😭😮😯"
        "😰😱😲😳😴😵😶😷🙁🙂🙃🙄🤐🤑🤒🤓🤔🤕🤖🤗🤠🤡🤢🤣🤤🤥🤧🤨🤩🤪🤫🤬🤭🤮🤯🥰🥱🥲🥳🥴🥵🥶🥸🥹🥺🧐🫠🫡🫢🫣"
        "🫤🫥"
    ),
    "food": (
        "🌭🌮🌯🌶🌽🍅🍆🍇🍈🍉🍊🍋🍌🍍🍎🍏🍐🍑🍒🍓🍔🍕🍖🍗🍘🍙🍚🍛🍜🍝🍞🍟🍠🍡🍢🍣🍤🍥🍦🍧🍨🍩🍪🍫🍬🍭🍮🍯🍰🍱"
        "🍲🍳🍵🍶🍷🍸🍹🍺🍻🍾🍿🎂🥂🥃🥐🥑🥒🥓🥔🥕🥖🥗🥘🥙🥚🥛🥜🥝🥞🥟🥠🥡🥣🥤🥥🥦🥧🥨🥩🥪🥫🥬🥭🥮🥯🧀🧁🧂🧃🧄"
        "🧅🧆🧇🧈🧉🧊🧋🫐🫑🫒🫓🫔🫕🫖🫗🫘"
    ),
    "office": (
        "✂✉✏✒💰💱💲💳💴💵💶💷💸💹💻💼💽💾💿📀📁📂📃📄📅📆📇📈📉📊📋📌📍📎📏📐📑📒📓📔📕📖📗📘📙📚📛📜📝📤"
        "📥📦📧📨📩📪📫📬📭📮📰🖇🖊🖋🖌🖍🗂🗃🗄🗑🗒🗓🗜🗝🗞🧾"
    ),
    "person": (
        "🏂🏃🏄🏇🏊🏋🏌👦👧👨👩👪👫👬👭👮👯👰👱👲👳👴👵👶👷👸👼💁💂💃💆💇💏💑🕴🕵🕺🙅🙆🙇🙋🙍🙎🚣🚴🚵🚶🤦🤰🤱"
        "🤴🤵🤶🤷🤸🤹🤺🤼🤽🤾🦸🦹🧍🧎🧏🧑🧒🧓🧔🧕🧖🧗🧘🧙🧚🧛🧜🧝🧞🧟🫃🫄🫅"
    ),
    "place": (
        "⛩⛪⛰⛱⛲⛺🌁🌃🌄🌅🌆🌇🌉🌋🎪🏔🏕🏖🏗🏘🏙🏚🏛🏜🏝🏞🏟🏠🏡🏢🏣🏤🏥🏦🏨🏩🏪🏫🏬🏭🏯🏰💒🕋🕌🕍🗺🗻🗼🗽🛕🛖🛣🛤"
    ),
    "sign": (
        "☢☣☦☪☮☯☸♀♂♈♉♊♋♌♍♎♏♐♑♒♓⚠⚡🅰🅱🅾🅿🆎🆑🆒🆓🆔🆕🆖🆗🆘🆙🆚🈁🈂🈚🈯🈲🈳🈴🈵🈶🈷🈸🈹"
        "🈺🉐🉑🔀🔁🔂🔃🔄🔅🔆🔘🔙🔚🔛🔜🔝🔞🔟🔠🔡🔢🔣🔤🔯🔰🔱🔲🔳🔴🔵🔶🔷🔸🔹🔺🔻🔼🔽🚫🚬🚭🚮🚯🚰🚱🚸🚹🚺🚻🚼"
        "🛂🛃🛄🛅"
    ),
    "vehicle": (
        "⛴⛵✈🏍🏎🚀🚁🚂🚃🚄🚅🚆🚈🚊🚋🚌🚍🚎🚐🚑🚒🚓🚔🚕🚖🚗🚘🚙🚚🚛🚜🚝🚞🚟🚠🚡🚢🚤🚲🛥🛩🛫🛬🛳🛴🛵🛶🛸🛺🛻"
        "🦼🦽"
    ),
}
_SIDE = 160
_GROUNDS = ("brick", "grass", "gravel", "coffee", "chelsea", "rocket", "coins", "moon")


def _read_emoji() -> Iterator[Picture]:
    font = ImageFont.truetype(
        _require(FONT, "Install Debian's package fonts-noto-color-emoji."), 109
    )
    for kind, glyphs in EMOJI_KINDS.items():
        order = np.random.default_rng(0).permutation(len(glyphs))
        in_pool = min(60, len(glyphs) * 2 // 3)
        for rank, index in enumerate(order):
            glyph = glyphs[index]
            # A test object is seen on two grounds.
            for view in range(1 if rank < in_pool else 2):
                random = np.random.default_rng([ord(glyph), view])
                split = "pool" if rank < in_pool else "test"
                yield split, kind, f"{ord(glyph):x}_{view}", _render(glyph, font, random)


def _render(glyph: str, font: ImageFont.FreeTypeFont, random: np.random.Generator) -> Image.Image:
    """A glyph of random size, slightly turned, on a plain ground or a piece of a photo."""
    picture = Image.new("RGBA", (136, 128))
    ImageDraw.Draw(picture).text((0, 0), glyph, font=font, embedded_color=True)
    scale = random.uniform(0.5, 1.1)
    turned = picture.rotate(random.uniform(-25, 25), Image.Resampling.BICUBIC, expand=True)
    turned = turned.resize((round(turned.width * scale), round(turned.height * scale)))
    ground = _draw_ground(random)
    left, top = (int(random.integers(-8, max(_SIDE - extent, -8) + 9)) for extent in turned.size)
    ground.paste(turned, (left, top), turned)
    return ground


def _draw_ground(random: np.random.Generator) -> Image.Image:
    if random.random() < 0.5:
        return Image.new("RGB", (_SIDE, _SIDE), tuple(random.integers(0, 256, 3).tolist()))
    photo = _read_ground(_GROUNDS[int(random.integers(len(_GROUNDS)))])
    left, top = (int(random.integers(extent - _SIDE + 1)) for extent in photo.size)
    return photo.crop((left, top, left + _SIDE, top + _SIDE))


@functools.cache
def _read_ground(name: str) -> Image.Image:
    return Image.fromarray(getattr(photos, name)()).convert("RGB")


# Trees

_TILE = 64
_LAND, _ROAD = "2019_YELL_2_528000_4978000_image_crop2", "2019_YELL_2_541000_4977000_image_crop"


def _read_trees() -> Iterator[Picture]:
    """Tiles that hold the middle of a tree, against tiles that no box touches."""
    for name in (_LAND, _ROAD):
        root = _require(ASSETS / "deepforest/deepforest/data", FETCH)
        photo = Image.open(root / f"{name}.png")
        boxes = _read_boxes(root / f"{name}.xml")
        for top in range(0, photo.height - _TILE + 1, _TILE):
            for left in range(0, photo.width - _TILE + 1, _TILE):
                label = _judge_tile(boxes, left, top)
                if label is not None:
                    tile = photo.crop((left, top, left + _TILE, top + _TILE))
                    split = "test" if name == _ROAD or top >= photo.height * 0.6 else "pool"
                    yield split, label, f"{name[12:18]}_{top}_{left}", tile


def _read_boxes(path: Path) -> np.ndarray:
    sides = ("xmin", "ymin", "xmax", "ymax")
    boxes = ET.parse(path).iter("bndbox")
    return np.array([[float(box.findtext(side, "")) for side in sides] for box in boxes])


def _judge_tile(boxes: np.ndarray, left: int, top: int) -> str | None:
    """`trees`, `clear`, or None where a tree only reaches into the tile."""
    right, bottom = left + _TILE, top + _TILE
    touches = (boxes[:, :2] < (right, bottom)).all(1) & (boxes[:, 2:] > (left, top)).all(1)
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    holds = ((middles >= (left, top)) & (middles < (right, bottom))).all(1)
    return "trees" if holds.any() else None if touches.any() else "clear"


# Faces


def _read_lfw() -> Iterator[Picture]:
    grey = (photos.lfw_subset() * 255).round().astype(np.uint8)
    for index, pixels in enumerate(grey):
        label = "face" if index < 100 else "none"
        yield "pool" if index % 100 < 50 else "test", label, f"{index:03d}", Image.fromarray(pixels)


SETS: dict[str, Callable[[], Iterator[Picture]]] = {
    "textile": _read_textile,
    "fashion_mnist": _read_fashion_mnist,
    "emoji": _read_emoji,
    "trees": _read_trees,
    "lfw": _read_lfw,
}
