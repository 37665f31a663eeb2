"""One look for every HTML page: the page itself, plots and contact sheets as PNG bytes."""

from vfm.report.curves import Curve, plot_curves
from vfm.report.page import Page
from vfm.report.plots import (
    plot_bars,
    plot_confusion_matrix,
    plot_intervals,
    plot_learning_curves,
)
from vfm.report.sheet import draw_contact_sheet

__all__ = [
    "Curve",
    "Page",
    "draw_contact_sheet",
    "plot_bars",
    "plot_confusion_matrix",
    "plot_curves",
    "plot_intervals",
    "plot_learning_curves",
]
