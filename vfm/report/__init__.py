"""One look for every HTML page: the page itself, plots and contact sheets as PNG bytes."""

from vfm.report.curves import Curve, curves
from vfm.report.page import Page
from vfm.report.plots import bars, confusion_matrix, learning_curve, learning_curves
from vfm.report.sheet import contact_sheet

__all__ = [
    "Curve",
    "Page",
    "bars",
    "confusion_matrix",
    "contact_sheet",
    "curves",
    "learning_curve",
    "learning_curves",
]
