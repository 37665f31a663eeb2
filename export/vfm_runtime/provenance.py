"""Provenance: what the content credentials (C2PA) of a file prove, apart from what a model says of its pixels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, Self

from vfm_runtime.errors import DataError, MissingPackageError

_BEGIN = b"-----BEGIN CERTIFICATE-----"
_UNTRUSTED = "signingCredential.untrusted"
# Terms of IPTC's vocabulary (cv.iptc.org/newscodes/digitalsourcetype) that say what people ask for.
_SOURCE_WORDS = {
    "trainedAlgorithmicMedia": "made by a generative model",
    "compositeWithTrainedAlgorithmicMedia": "composed with parts that a generative model made",
    "algorithmicallyEnhanced": "enhanced by an algorithm",
    "digitalCapture": "captured by a camera",
}


class CredentialState(StrEnum):
    """What the content credentials of a file prove, from nothing to most."""

    NONE = "none"
    """There are none, which says nothing about where the file comes from."""
    BROKEN = "broken"
    """The file was changed after it was signed, or its signature does not hold."""
    VALID = "valid"
    """The file is as it was signed; who signed it is on none of the trust lists."""
    TRUSTED = "trusted"
    """The file is as it was signed, by somebody whom a trust list vouches for."""


class TrustList(NamedTuple):
    """Certificates of the authorities that a user trusts, of one PEM file."""

    path: Path
    pem: str
    sha256: str
    date: str
    """Day on which the file was last changed, as YYYY-MM-DD in UTC."""
    num_certificates: int

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a list.

        Raises:
            DataError: There is no such file, or it holds no certificates.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"{path}: the trust list cannot be read ({error.strerror}). Check --trust-list."
            ) from error
        if not (number := content.count(_BEGIN)):
            raise DataError(
                f"{path} holds no certificate. A trust list is a PEM file, of '-----BEGIN CERTIFICATE-----' and so on, "
                "such as the one that the C2PA publishes."
            )
        date = datetime.fromtimestamp(path.stat().st_mtime, UTC).date().isoformat()
        pem = content.decode("ascii", errors="replace")
        return cls(path, pem, hashlib.sha256(content).hexdigest(), date, number)

    def __str__(self) -> str:
        return f"{self.path.name} of {self.date}"


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """What the content credentials of one file prove and declare."""

    state: CredentialState
    failures: tuple[str, ...] = ()
    """Codes of the C2PA's specification for what does not hold, such as `assertion.dataHash.mismatch`."""
    signer: str | None = None
    """Name of the certificate that signed, which a list of trust vouches for only where it is `trusted`."""
    signed: str | None = None
    """Time of the signature by an authority of time stamps; None where none was asked."""
    trust_list: TrustList | None = None
    """List that vouches for the signer."""
    generator: str | None = None
    """Program that wrote the credentials, as it names itself."""
    source_types: tuple[str, ...] = ()
    """Terms of IPTC for how the content came about, of the file first, then of what it was made of."""
    notes: tuple[str, ...] = ()
    """What else a reader must know."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        values = {**vars(self), "state": str(self.state), "trust_list": None}
        if self.trust_list is not None:
            values["trust_list"] = {
                "path": str(self.trust_list.path),
                "date": self.trust_list.date,
                "sha256": self.trust_list.sha256,
            }
        return values

    def describe(self) -> Iterator[tuple[str, str]]:
        """Yield the rows of a sheet: what, and what is known of it."""
        signer = f"signed by {self.signer or 'somebody unnamed'}"
        yield (
            "credentials",
            {
                CredentialState.NONE: "none; that says nothing about where the file comes from",
                CredentialState.BROKEN: f"broken: {', '.join(self.failures)}",
                CredentialState.VALID: f"valid, not trusted: {signer}, who is on no trust list that was given",
                CredentialState.TRUSTED: f"trusted by {self.trust_list}: {signer}",
            }[self.state],
        )
        if self.signed is not None:
            yield "signed", self.signed
        if self.generator is not None:
            yield "written by", self.generator
        unproven = ", which broken credentials cannot prove"
        for term in self.source_types:
            words = f"{_SOURCE_WORDS[term]} ({term})" if term in _SOURCE_WORDS else term
            yield "declares", words + unproven * (self.state is CredentialState.BROKEN)
        for note in self.notes:
            yield "note", note


def read_credentials(
    path: Path, trust_lists: Sequence[TrustList] = (), *, now: datetime | None = None
) -> Credentials:
    """Read and check the content credentials of a file, without a network: nothing is fetched, no list is built in.

    Args:
        path: File of an image or a video, whose suffix does not matter.
        trust_lists: Lists of authorities, asked in this order; without any no signer is trusted.
        now: Time by which dates lie in the future; by default that of this machine.

    Raises:
        MissingPackageError: The extra `c2pa` is not installed.
        DataError: There is no such file.
    """
    try:
        import c2pa
    except ImportError as error:
        raise MissingPackageError(
            "Content credentials are read by c2pa-python, which is not installed: pip install 'vfm-runtime[c2pa]'."
        ) from error
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"{path} {what}. Name files to verify.")
    result = Credentials(state=CredentialState.NONE)
    asked: Sequence[TrustList | None] = trust_lists or [None]
    for trust_list in asked:
        settings: dict[str, Any] = {
            "verify": {"verify_trust": True, "remote_manifest_fetch": False, "ocsp_fetch": False}
        }
        if trust_list is not None:
            settings["trust"] = {"trust_anchors": trust_list.pem}
        try:
            with c2pa.Reader(path, context=c2pa.Context.from_dict(settings)) as reader:
                result = _read_report(json.loads(reader.json()), trust_list, now)
        except c2pa.C2paError as error:
            return _read_error(str(error))
        if result.state is not CredentialState.VALID:
            return result
    return result


def _read_error(text: str) -> Credentials:
    """What it means that no manifest could be read; the library says so by the start of its messages alone."""
    kind, _, detail = text.partition(": ")
    if kind == "ManifestNotFound":
        return Credentials(state=CredentialState.NONE)
    if kind == "NotSupported":
        note = "credentials of this kind of file cannot be read"
        return Credentials(state=CredentialState.NONE, notes=(note,))
    if kind.startswith("Remote"):
        note = f"the file refers to credentials elsewhere, which are not fetched: {detail}"
        return Credentials(state=CredentialState.NONE, notes=(note,))
    return Credentials(state=CredentialState.BROKEN, failures=(text,))


def _read_report(
    report: dict[str, Any], trust_list: TrustList | None, now: datetime | None
) -> Credentials:
    active = report["active_manifest"]
    manifests = {active: report["manifests"][active]} | report["manifests"]
    results = report["validation_results"]["activeManifest"]
    deltas = report["validation_results"].get("ingredientDeltas") or []
    checks = [results, *(delta["validationDeltas"] for delta in deltas)]
    codes = [entry["code"] for check in checks for entry in check["failure"]]
    failures = tuple(dict.fromkeys(code for code in codes if code != _UNTRUSTED))
    states = {"Trusted": CredentialState.TRUSTED, "Valid": CredentialState.VALID}
    state = states.get(report["validation_state"], CredentialState.BROKEN)
    signature = manifests[active].get("signature_info") or {}
    names = [signature.get("common_name"), signature.get("issuer")]
    generators = manifests[active].get("claim_generator_info") or [{}]
    actions = [
        action
        for manifest in manifests.values()
        for assertion in manifest.get("assertions") or []
        if assertion["label"].startswith("c2pa.actions")
        for action in assertion["data"].get("actions", [])
    ]
    terms = [str(action.get("digitalSourceType", "")).rpartition("/")[2] for action in actions]
    now = datetime.now(UTC) if now is None else now
    dates = [signature.get("time"), *(action.get("when") for action in actions)]
    late = [date for date in dates if date and (read := _read_date(date)) and read > now]
    return Credentials(
        state=state,
        failures=failures or ((report["validation_state"],) * (state is CredentialState.BROKEN)),
        signer=" of ".join(name for name in names if name) or None,
        signed=signature.get("time"),
        trust_list=trust_list if state is CredentialState.TRUSTED else None,
        generator=generators[0].get("name"),
        source_types=tuple(dict.fromkeys(term for term in terms if term)),
        notes=tuple(f"it states a time that is yet to come: {date}" for date in late),
    )


def _read_date(text: str) -> datetime | None:
    """The time that an ISO text states, in UTC where it names no zone; None of another text."""
    try:
        date = datetime.fromisoformat(text)
    except ValueError:
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)
