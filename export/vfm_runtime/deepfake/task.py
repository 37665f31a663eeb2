"""The task of deepfake models: crops of images and videos in, verdicts out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from vfm_runtime.deepfake.decision import Decision
from vfm_runtime.deepfake.evidence import FAKE, REAL, UNDECIDED, VERDICT_LABELS, sigmoid
from vfm_runtime.deepfake.faces.crop import CropSpec
from vfm_runtime.deepfake.pipeline import CropEvidence, DeepfakePipeline
from vfm_runtime.deepfake.verdict import TASK, Verdict, VerdictAnswer
from vfm_runtime.errors import ContractError, DataError
from vfm_runtime.media.image import ImageSource
from vfm_runtime.media.video import LIMITS, VideoLimits
from vfm_runtime.tasks.base import Arrays, Opened, TaskType
from vfm_runtime.tasks.confidence import AbstainReason
from vfm_runtime.validation import is_number

_RULES = ("crop", "decision")


class DeepfakeType(TaskType):
    """Whether an image or a video is real or fake, by crops of faces or squares of the whole image.

    Attributes:
        pipeline: Cuts crops out, and decides.
    """

    name = TASK
    summary = "tells real from fake"
    outputs: Mapping[str, str] = {"logits": "float", "heatmaps": "float", "distances": "float"}
    takes_video = True
    uses_crops = True
    draws = True
    answer_type = VerdictAnswer
    group_keys = ("threshold", "num_reals", "temperature", "real_below")
    pipeline: DeepfakePipeline

    def __init__(self, labels: Sequence[str], rules: Mapping[str, Any] | None = None) -> None:
        """Take the labels `real` and `fake`, and the rules `crop` and `decision`, without which there is no such model.

        Raises:
            ContractError: The labels are others, or the rules are not these two.
            ValueError: A rule does not hold.
        """
        if tuple(labels) != VERDICT_LABELS:
            raise ContractError.of(
                "labels", list(labels), f"{list(VERDICT_LABELS)} for the task '{TASK}'"
            )
        super().__init__(labels, {} if rules is None else rules)

    @classmethod
    def of(cls, pipeline: DeepfakePipeline) -> "DeepfakeType":
        """Return the task of a pipeline that is there already, with its detector."""
        rules = {"crop": pipeline.crop.to_dict(), "decision": pipeline.decision.to_dict()}
        task = cls(VERDICT_LABELS, rules)
        task.pipeline = pipeline
        return task

    def read_rules(self, rules: Mapping[str, Any]) -> None:
        """Check how crops are made and how verdicts are reached."""
        if not isinstance(rules, dict) or set(rules) != set(_RULES):
            raise ContractError.of(
                "rules", rules or None, "an object with the keys 'crop' and 'decision'"
            )
        crop, decision = CropSpec.from_dict(rules["crop"]), Decision.from_dict(rules["decision"])
        self.pipeline = DeepfakePipeline(crop, decision)

    def apply_group(self, rules: Mapping[str, Any]) -> None:
        """Take values of the decision, such as `threshold` and `temperature`.

        A threshold below the general `real_below` takes its place, so that nothing lies between them.
        """
        if not rules:
            return
        plain, values = self.pipeline.decision, dict(rules)
        below, threshold = plain.real_below, rules.get("threshold", plain.threshold)
        if "real_below" not in rules and below is not None and is_number(threshold):
            values["real_below"] = min(below, threshold)
        self.pipeline = self.pipeline.with_decision(replace(plain, **values))

    def rules_to_dict(self) -> dict[str, Any]:
        """Return `crop` and `decision` as plain values."""
        pipeline = self.pipeline
        return {"crop": pipeline.crop.to_dict(), "decision": pipeline.decision.to_dict()}

    def open(
        self, source: ImageSource, *, cropped: bool = False, limits: VideoLimits = LIMITS
    ) -> Opened:
        """Open an image or a video and cut crops out of it; there may be none."""
        evidence = self.pipeline.collect_evidence(source, cropped=cropped, limits=limits)
        return Opened(evidence.pixels, evidence)

    def predict(self, opened: Opened, outputs: Arrays) -> Verdict:
        """Return the verdict on one image or video from the rows of its crops."""
        verdict = self.pipeline.judge_evidence(cast(CropEvidence, opened.context), outputs)
        return replace(verdict, group=self.group)

    def predictions(self, outputs: Arrays) -> list[Verdict]:
        """Return a verdict for each crop; no rule of quality applies."""
        return [replace(each, group=self.group) for each in self.pipeline.judge_crops(outputs)]

    def read_golden(self, row: Mapping[str, Any]) -> Verdict:
        """Rebuild the verdict of the export: rules of quality, which need the crop's pixels, are not applied anew."""
        (verdict,) = self.predictions(self.read_outputs(row))
        if row["label"] not in (REAL, FAKE, UNDECIDED):
            raise DataError(f"'label' is {row['label']!r}")
        return replace(
            verdict,
            label=row["label"],
            reason=None if row["reason"] is None else AbstainReason(row["reason"]),
            score=None if row["score"] is None else float(row["score"]),
        )

    def describe_rules(self) -> Iterator[tuple[str, str]]:
        """Yield how crops are made, frames and the threshold."""
        crop, rules = self.pipeline.crop, self.pipeline.decision
        faces = f", {crop.policy} face, {crop.detector}" if crop.source == "faces" else ""
        yield "crop", f"{crop.source}, {crop.size} pixels, margin {crop.margin:g}{faces}"
        yield "frames", f"{rules.num_frames} of a video"
        if rules.threshold is None:
            yield "threshold", "0.5 assumed: not calibrated"
            return
        basis = ""
        if rules.fpr is not None and rules.num_reals is not None:
            basis = f", for {rules.fpr:.1%} false alarms, fitted on {rules.num_reals} real ones"
        yield "threshold", f"{sigmoid(rules.threshold):.4f}{basis}"
