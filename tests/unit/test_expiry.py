"""When a certificate expires, as its PEM file says."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import trustme

from mirror.server.certificates import expiry


@pytest.mark.parametrize(
    ("when", "key"),
    [
        (datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC), trustme.KeyType.ECDSA),
        (datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC), trustme.KeyType.RSA),
        (datetime(2050, 1, 1, tzinfo=UTC), trustme.KeyType.ECDSA),
        (datetime(2003, 1, 1, tzinfo=UTC), trustme.KeyType.ECDSA),
        (datetime(1999, 2, 28, tzinfo=UTC), trustme.KeyType.ECDSA),
    ],
    ids=["utc-time", "last-utc-time", "generalized-time", "past", "last-century"],
)
def test_it_is_told(when: datetime, key: trustme.KeyType) -> None:
    made = trustme.CA().issue_cert(
        "localhost", not_before=when - timedelta(days=1), not_after=when, key_type=key, organization_name="ä" * 60
    )
    pem = b"said before it\n" + made.cert_chain_pems[0].bytes() + made.cert_chain_pems[0].bytes()
    assert expiry(pem) == when.timestamp()
    assert expiry(made.private_key_and_cert_chain_pem.bytes()) == when.timestamp()


@pytest.mark.parametrize("part", [0, 10, 100])
def test_what_is_no_certificate_has_none(part: int) -> None:
    pem = trustme.CA().issue_cert("localhost").cert_chain_pems[0].bytes()
    assert expiry(pem[:part]) is None
    assert expiry(pem[:part] + pem[-30:]) is None
    assert expiry(b"-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n") is None
