"""Files of an upstream's settings that are no files when they are needed: OpenSSL would wait for a pipe for ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trustme
from yarl import URL

from mirror.config import Upstream
from mirror.upstream.tls import UnusableFile, load_contexts

NO_FILE = "/dev/null"  # which, unlike a pipe, fails a test instead of holding it up


@pytest.mark.parametrize(
    ("setting", "settings"),
    [
        ("ca_file", {"ca_file": NO_FILE}),
        ("client_certificate", {"client_certificate": {"certificate": NO_FILE, "key": "KEY"}}),
        ("client_certificate", {"client_certificate": {"certificate": "KEY", "key": NO_FILE}}),
    ],
    ids=["ca", "certificate", "key"],
)
def test_what_is_no_file_is_not_opened(tmp_path: Path, setting: str, settings: dict[str, Any]) -> None:
    pair = tmp_path / "pair.pem"
    trustme.CA().issue_cert("a").private_key_and_cert_chain_pem.write_to_path(str(pair))
    given = {
        key: {one: path.replace("KEY", str(pair)) for one, path in value.items()} if isinstance(value, dict) else value
        for key, value in settings.items()
    }
    upstream = Upstream(url="https://r.example", **given)
    with pytest.raises(UnusableFile, match=f"its {setting} cannot be used: it is not a file"):
        load_contexts(upstream, URL(upstream.url))
