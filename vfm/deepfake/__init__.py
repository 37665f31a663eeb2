"""Deepfake detection: data, faces, task, head, loss, metrics, shortcuts, robustness and pages.

A plug-in: it builds on every other package of vfm, and none of them knows it. The way of a report, from `vfm test`:
1. `data/`: a manifest or folder becomes one `DeepfakeRecord` an image; `dataset.py` opens the crops.
2. `task.py`: logits and distances of each batch go into a collector, which joins those of all ranks.
3. `results.py`: images become videos; `metrics.py` gives AUC by video, frame, method and set, with intervals by person.
4. `results.py`: what `vfm calibrate` fitted is applied to the test; warnings say what makes figures doubtful.
5. `results.json` and `videos_<split>.csv` are written, and `page.py` lays it all out with curves and the worst videos.
"""

from vfm.deepfake.data.data import DeepfakeData
from vfm.deepfake.data.synthetic import SyntheticDeepfakes
from vfm.deepfake.head import DeepfakeHead
from vfm.deepfake.loss import DeepfakeLoss
from vfm.deepfake.task import DeepfakeTask

__all__ = ["DeepfakeData", "DeepfakeHead", "DeepfakeLoss", "DeepfakeTask", "SyntheticDeepfakes"]
