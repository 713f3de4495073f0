"""Tokens as Docker's token specification has them: RS256 JWTs that carry their certificate (x5c)."""

from __future__ import annotations

import base64
import json
import time
import uuid
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

ISSUER = "auth.docker.io"
SERVICE = "registry.docker.io"
LIFETIME = 300  # seconds


class Signer:
    """Signs with the key of one PEM file that holds a private key and its certificate."""

    def __init__(self, pem: Path) -> None:
        data = pem.read_bytes()
        key = serialization.load_pem_private_key(data, None)
        assert isinstance(key, rsa.RSAPrivateKey)
        self._key = key
        certificate = x509.load_pem_x509_certificates(data)[0]
        self._certificate = base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()

    def token(self, subject: str, access: list[dict[str, Any]], *, service: str = SERVICE) -> str:
        now = int(time.time())
        head = {"typ": "JWT", "alg": "RS256", "x5c": [self._certificate]}
        claims = {
            "iss": ISSUER,
            "sub": subject,
            "aud": service,
            "exp": now + LIFETIME,
            "nbf": now - 10,
            "iat": now,
            "jti": uuid.uuid4().hex,
            "access": access,
        }
        text = f"{_b64(json.dumps(head).encode())}.{_b64(json.dumps(claims).encode())}"
        signature = self._key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{text}.{_b64(signature)}"


def access_of(scopes: list[str], *, known_user: bool) -> list[dict[str, Any]]:
    """What a request's scopes grant: everybody may pull, a known user whatever is asked for."""
    granted = []
    for scope in " ".join(scopes).split():
        kind, _, rest = scope.partition(":")
        name, _, actions = rest.rpartition(":")
        allowed = [action for action in actions.split(",") if known_user or action == "pull"]
        granted.append({"type": kind, "name": name, "actions": allowed})
    return granted


def subject_of(token: str) -> str:
    """Who a token was given to, empty for anybody; unchecked: the registry behind checks it."""
    claims = token.split(".")[1]
    subject: str = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["sub"]
    return subject


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
