"""`vfm-runtime verify`: credentials signed here, by certificates made here."""

import json
import time
from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from PIL import Image
from vfm_runtime.cli import main
from vfm_runtime.errors import DataError, MissingPackageError
from vfm_runtime.provenance import TrustList, read_credentials

from tests.runtime import toy_deepfake
from tests.runtime.signing import SOURCES, Authority, sign


@pytest.fixture(scope="module")
def signed(tmp_path_factory):
    """Files by what their credentials are, and the list of one authority."""
    folder = tmp_path_factory.mktemp("credentials")
    names = ["unsigned", "expired", "trusted", "alone", "changed", "composed", "list"]
    files = {name: folder / f"{name}.jpg" for name in names}
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(files["unsigned"])
    root, key = Authority("Root"), ec.generate_private_key(ec.SECP256R1())
    made = {"action": "c2pa.created", "digitalSourceType": SOURCES + "trainedAlgorithmicMedia"}
    shot = {"action": "c2pa.created", "digitalSourceType": SOURCES + "digitalCapture"}

    def write(name, signer, certificate, action=made, **more):
        sign(files["unsigned"], files[name], certificate, signer, action=action, **more)

    soon = timedelta(seconds=2)
    write("expired", key, root.certify("Old", key, lasts=soon) + root.certificate)
    write("trusted", key, root.certify("Camera", key) + root.certificate)
    alone = Authority("Anybody")
    write("alone", alone.key, alone.certify("Anybody", alone.key), {**shot, "when": "2999-01-01"})
    chain = root.certify("Camera", key) + root.certificate
    write("composed", key, chain, shot, ingredient=files["trusted"])
    changed = bytearray(files["trusted"].read_bytes())
    changed[-200] ^= 1
    files["changed"].write_bytes(changed)
    files["list"] = folder / "authorities.pem"
    files["list"].write_text(root.certificate)
    time.sleep(3.1)  # a certificate is valid to the end of its last second
    return SimpleNamespace(**files)


def test_states(signed):
    trusted_authorities = TrustList.read(signed.list)
    lists = [trusted_authorities]
    none = read_credentials(signed.unsigned, lists)
    assert (none.state, none.failures, none.signer) == ("none", (), None)
    trusted = read_credentials(signed.trusted, lists)
    assert (trusted.state, trusted.signer) == ("trusted", "Camera of Makers")
    assert trusted.trust_list == trusted_authorities
    assert (trusted.generator, trusted.source_types) == ("a camera", ("trainedAlgorithmicMedia",))
    assert read_credentials(signed.trusted).state == "valid"  # no list is built in
    alone = read_credentials(signed.alone, lists)
    assert (alone.state, alone.trust_list) == ("valid", None)
    assert alone.notes == ("it states a time that is yet to come: 2999-01-01",)
    changed = read_credentials(signed.changed, lists)
    assert (changed.state, changed.failures) == ("broken", ("assertion.dataHash.mismatch",))
    expired = read_credentials(signed.expired, lists)
    assert (expired.state, expired.failures) == ("broken", ("signingCredential.expired",))
    # What it was made of is read too, and comes after what the file itself declares.
    composed = read_credentials(signed.composed, lists)
    assert composed.source_types == ("digitalCapture", "trainedAlgorithmicMedia")


def run(capsys, *words):
    code = main(["verify", *map(str, words)])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_sheet_and_exit_codes(signed, capsys, tmp_path):
    code, out, _ = run(capsys, signed.unsigned, signed.trusted, "--trust-list", signed.list)
    assert code == 0
    assert "credentials   none; that says nothing about where the file comes from" in out
    assert "credentials   trusted by authorities.pem of 20" in out
    assert "signed by Camera of Makers" in out
    assert "declares      made by a generative model (trainedAlgorithmicMedia)" in out
    assert run(capsys, signed.trusted, "--require", "valid")[0] == 0
    assert run(capsys, signed.trusted, "--require", "trusted")[0] == 1
    assert run(capsys, signed.unsigned, "--require", "valid")[0] == 1
    code, out, _ = run(capsys, signed.changed)
    assert code == 1
    assert "broken: assertion.dataHash.mismatch" in out
    assert "(trainedAlgorithmicMedia), which broken credentials cannot prove" in out
    code, out, _ = run(capsys, tmp_path / "gone.jpg", signed.unsigned)
    assert code == 1
    assert "gone.jpg does not exist. Name files to verify." in out
    assert "unsigned.jpg\n  credentials   none" in out
    damaged = tmp_path / "damaged.gif"
    damaged.write_bytes(b"GIF89a")
    assert run(capsys, damaged)[0] == 1


def test_beside_a_bundle(signed, capsys, tmp_path):
    bundle = toy_deepfake.build(tmp_path / "bundle")
    code, out, _ = run(capsys, signed.trusted, "--bundle", bundle, "--json")
    answer = json.loads(out)
    assert code == 0
    assert answer["credentials"]["state"] == "valid"
    assert answer["prediction"]["task"] == "deepfake"
    assert "state" not in answer["prediction"]  # beside each other, never merged
    assert answer["rules"]
    _, out, _ = run(capsys, signed.trusted, "--bundle", bundle)
    assert "\n  model         " in out
    assert "\n  credentials   " in out


def test_bad_lists_and_a_missing_package(signed, capsys, monkeypatch):
    with pytest.raises(DataError, match=r"unsigned\.jpg holds no certificate\. A trust list is a"):
        TrustList.read(signed.unsigned)
    code, _, err = run(capsys, signed.trusted, "--trust-list", "gone.pem")
    assert code == 1
    assert "gone.pem: the trust list cannot be read (No such file or directory)" in err
    monkeypatch.setitem(__import__("sys").modules, "c2pa", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'vfm-runtime\[c2pa\]'"):
        read_credentials(signed.trusted)
