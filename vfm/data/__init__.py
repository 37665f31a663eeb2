"""Images with labels or boxes, from folders, tables, MNIST files or generated, as Lightning data modules."""

from vfm.data.base import ImageData
from vfm.data.detection.auto import DetectionData
from vfm.data.detection.synthetic import SyntheticScenes
from vfm.data.digits import DigitsData
from vfm.data.folder import FolderData
from vfm.data.idx import IdxData
from vfm.data.shards import ShardData
from vfm.data.synthetic import SyntheticData
from vfm.data.table import TableData

__all__ = [
    "DetectionData",
    "DigitsData",
    "FolderData",
    "IdxData",
    "ImageData",
    "ShardData",
    "SyntheticData",
    "SyntheticScenes",
    "TableData",
]
