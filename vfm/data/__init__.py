"""Images with labels or boxes, from folders, tables, MNIST files or generated, as Lightning data modules."""

from vfm.data.base import ImageData as ImageData
from vfm.data.detection.auto import DetectionData as DetectionData
from vfm.data.detection.synthetic import SyntheticScenes as SyntheticScenes
from vfm.data.digits import DigitsData as DigitsData
from vfm.data.folder import FolderData as FolderData
from vfm.data.idx import IdxData as IdxData
from vfm.data.shards import ShardData as ShardData
from vfm.data.synthetic import SyntheticData as SyntheticData
from vfm.data.table import TableData as TableData
