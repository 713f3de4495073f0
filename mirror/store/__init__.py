"""Bytes by digest on one local disk. Commit is the only way in."""
