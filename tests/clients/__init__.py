"""Real clients through the mirror: containerd, docker, podman, buildah and skopeo, offline.

See README.md beside this file for what is started, what is asserted and how to point it elsewhere.
"""
