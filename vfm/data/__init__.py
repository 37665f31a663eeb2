"""Images with labels, from folders, from memory or generated, as Lightning data modules."""

from vfm.data.base import ImageData
from vfm.data.digits import DigitsData
from vfm.data.folder import FolderData
from vfm.data.idx import IdxData
from vfm.data.synthetic import SyntheticData

__all__ = ["DigitsData", "FolderData", "IdxData", "ImageData", "SyntheticData"]
