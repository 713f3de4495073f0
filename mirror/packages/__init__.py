"""A folder of images: OCI layouts and ``docker save`` archives, served where they lie, without copying."""
