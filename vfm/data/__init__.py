"""Images with labels, boxes or forgeries, from folders, tables, MNIST files or generated, as Lightning data modules."""

from vfm.data.base import ImageData
from vfm.data.boxes.scenes import SyntheticScenes
from vfm.data.detection import DetectionData
from vfm.data.digits import DigitsData
from vfm.data.fakes.data import FakesData
from vfm.data.fakes.procedural import SyntheticFakes
from vfm.data.folder import FolderData
from vfm.data.idx import IdxData
from vfm.data.shards import ShardData
from vfm.data.synthetic import SyntheticData
from vfm.data.table import TableData

__all__ = [
    "DetectionData",
    "DigitsData",
    "FakesData",
    "FolderData",
    "IdxData",
    "ImageData",
    "ShardData",
    "SyntheticData",
    "SyntheticFakes",
    "SyntheticScenes",
    "TableData",
]
