"""Certificates and signed files for the tests of content credentials."""

import json
from datetime import UTC, datetime, timedelta

import c2pa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = timedelta(days=1)
SOURCES = "http://cv.iptc.org/newscodes/digitalsourcetype/"


class Authority:
    """A certificate that signs others, and itself."""

    def __init__(self, name):
        self.name, self.key = name, ec.generate_private_key(ec.SECP256R1())
        self.certificate = self.certify(name, self.key, is_authority=True)

    def certify(self, name, key, *, is_authority=False, lasts=30 * DAY):
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name(self.name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + lasts)
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), False
            )
        )
        usage = dict.fromkeys(
            ["content_commitment", "key_encipherment", "data_encipherment", "key_agreement"], False
        )
        usage |= dict.fromkeys(["key_cert_sign", "crl_sign"], is_authority)
        usage |= {"digital_signature": not is_authority}
        usage |= {"encipher_only": False, "decipher_only": False}
        builder = builder.add_extension(x509.KeyUsage(**usage), critical=True)
        if not is_authority:
            signing = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
            builder = builder.add_extension(signing, critical=False)
        signed = builder.sign(self.key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM).decode()


def _name(name):
    words = {NameOID.ORGANIZATION_NAME: "Makers", NameOID.COMMON_NAME: name}
    return x509.Name([x509.NameAttribute(kind, word) for kind, word in words.items()])


def sign(source, target, chain, key, *, action, ingredient=None):
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    pem = key.private_bytes(encoding, form, serialization.NoEncryption())
    info = c2pa.C2paSignerInfo(
        alg=c2pa.C2paSigningAlg.ES256, sign_cert=chain.encode(), private_key=pem, ta_url=None
    )
    manifest = {
        "claim_generator_info": [{"name": "a camera", "version": "1"}],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}],
    }
    context = c2pa.Context.from_dict({"verify": {"verify_after_sign": False}})
    with (
        c2pa.Signer.from_info(info) as signer,
        c2pa.Builder.from_json(json.dumps(manifest), context) as builder,
        source.open("rb") as read,
        target.open("w+b") as write,
    ):
        if ingredient is not None:
            with ingredient.open("rb") as stream:
                described = json.dumps({"title": "part", "relationship": "componentOf"})
                builder.add_ingredient(described, "image/jpeg", stream)
        builder.sign(signer, "image/jpeg", read, write)
