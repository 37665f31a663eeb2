"""EXIF orientation of annotated photos: whether their boxes are of the upright image, or of the stored one."""

from collections.abc import Sequence
from typing import Literal

from vfm_runtime.media.image import SIDEWAYS

from vfm.data.detection.annotation import AnnotatedImage, Box, ImageHeader, read_image_header

Orientation = Literal["auto", "upright", "stored"]

_WITHOUT_EXIF = (".bmp", ".gif", ".ppm", ".pgm", ".pbm")


def settle_boxes(
    images: Sequence[AnnotatedImage], orientation: Orientation
) -> tuple[list[AnnotatedImage], list[str]]:
    """Bring all boxes to pixels of the upright images, and give every image the size of its file where none is stated.

    Args:
        images: Images as their annotations state them.
        orientation: What boxes are of where an image is turned by its EXIF; `auto` goes by the sizes that are stated.

    Returns:
        The images, and what a person should know.
    """
    headers = [
        None
        if image.size and (image.path.suffix.lower() in _WITHOUT_EXIF or not image.boxes)
        else read_image_header(image.path)
        for image in images
    ]
    stated: dict[int, str] = {}
    silent: list[int] = []
    for index, (image, header) in enumerate(zip(images, headers, strict=True)):
        if header is None or header.orientation == 1 or not image.boxes:
            continue
        sizes = {"upright": header.size, "stored": header.stored_size}
        fitting = [meant for meant, size in sizes.items() if image.size in (None, size)]
        if len(fitting) == 1:
            stated[index] = fitting[0]
        elif fitting:
            silent.append(index)
    notes = []
    evidence = set(stated.values())
    if orientation == "auto":
        orientation = "stored" if evidence == {"stored"} else "upright"
        if silent and len(evidence) != 1:
            notes.append(
                f"{len(silent)} of {len(images)} images, such as {images[silent[0]].name}, are turned by their EXIF, "
                "and nothing says whether their boxes are of the upright image or of the stored one; they are taken "
                "for upright. Look at one, and set --data.box_orientation to upright or stored."
            )
    meaning: dict[int, str] = stated | dict.fromkeys(silent, orientation)
    turned = [index for index, meant in meaning.items() if meant == "stored"]
    if turned:
        notes.append(
            f"The boxes of {len(turned)} images, such as {images[turned[0]].name}, are of the image as it is stored; "
            "they are turned with it, as its EXIF says."
        )
    settled = [
        _settle_image(image, header, is_stored=meaning.get(index) == "stored")
        for index, (image, header) in enumerate(zip(images, headers, strict=True))
    ]
    return settled, notes


def _settle_image(
    image: AnnotatedImage, header: ImageHeader | None, *, is_stored: bool
) -> AnnotatedImage:
    size = image.size or (header.size if header else None)
    boxes = [box._replace(area=0.0) for box in image.boxes] if image.fractions else image.boxes
    if is_stored and header is not None:
        base = (1, 1) if image.fractions else header.stored_size
        boxes = [_turn_box(_scale_box(b, 1 / base[0], 1 / base[1]), header) for b in boxes]
        size = header.size
    if is_stored or image.fractions:
        # What has no size cannot be read: it is listed and left out when it is opened.
        boxes = [_scale_box(box, *size) for box in boxes] if size else []
    return image._replace(boxes=boxes, size=size, fractions=False)


def _scale_box(box: Box, down: float, across: float) -> Box:
    left, top, right, bottom = box[:4]
    return Box(left * across, top * down, right * across, bottom * down, *box[4:])


def _turn_box(box: Box, header: ImageHeader) -> Box:
    """A box in fractions of the stored image, in fractions of the upright one."""
    x, y = (box.left, box.right), (box.top, box.bottom)
    turn = header.orientation
    if turn in SIDEWAYS:
        x, y = y, x
    # Mirrored across, down, or both, after the exchange of sides.
    if turn in (2, 3, 6, 7):
        x = (1 - x[1], 1 - x[0])
    if turn in (3, 4, 7, 8):
        y = (1 - y[1], 1 - y[0])
    return Box(x[0], y[0], x[1], y[1], *box[4:])
