# The mirror in an image: a Python, the service in a folder of its own, nothing to build or install with.
#
#     docker build -t mirror .        # or: podman build --format docker -t mirror .
#     docker run --read-only -p 5000:5000 -v mirror:/var/lib/mirror mirror
#
# It runs as any user who may write /var/lib/mirror, and writes nowhere else. Its configuration is
# config/container.yaml: mount another one at /etc/mirror/mirror.yaml.
#
# BASE is any image of Debian's family with apt, or one that has Python 3.11 or newer and certificate authorities
# already, such as docker.io/library/python:3.13-slim.
ARG BASE=docker.io/library/debian:12-slim


FROM ${BASE} AS python
RUN set -eu; \
    export PYTHONDONTWRITEBYTECODE=1; \
    if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || ! [ -e /etc/ssl/certs/ca-certificates.crt ]; then \
      apt-get update -qq; \
      DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3 ca-certificates; \
      rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/debconf/*-old /var/cache/ldconfig/* /var/log/*; \
    fi; \
    # Images of Python come without bytecode, and a file system that is read-only never gets any.
    stdlib=$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))'); \
    [ -d "$stdlib/asyncio/__pycache__" ] || python3 -m compileall -q --invalidation-mode unchecked-hash \
      -x '/(ensurepip|idlelib|lib2to3|site-packages|test|tests|tkinter|turtledemo)/' "$stdlib"


FROM python AS build
WORKDIR /src
RUN set -eu; \
    python3 -c 'import ensurepip' || { \
      apt-get update -qq; \
      DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv; \
    }; \
    # pip has a place of its own: it is not wanted beside the service.
    python3 -m venv /pip; \
    python3 -m venv --without-pip /opt/mirror
COPY pyproject.toml ./
# Dependencies come first, so that a change of the code does not fetch them again.
RUN set -eu; \
    python3 -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb")); \
      print(*p["project"]["dependencies"], sep="\n", file=open("/service.txt", "w")); \
      print(*p["build-system"]["requires"], sep="\n", file=open("/build.txt", "w"))'; \
    /pip/bin/pip install -q --no-cache-dir --disable-pip-version-check -r /build.txt; \
    /pip/bin/pip --python /opt/mirror/bin/python3 install -q --no-cache-dir --disable-pip-version-check \
      --no-compile --only-binary :all: -r /service.txt
COPY README.md LICENSE ./
COPY config config
COPY mirror mirror
# The times of the files of the image; what they hold does not depend on the time either.
ARG SOURCE_DATE_EPOCH=0
RUN set -eu; \
    /pip/bin/pip wheel -q --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation -w /wheel .; \
    /pip/bin/pip --python /opt/mirror/bin/python3 install -q --no-cache-dir --disable-pip-version-check \
      --no-compile --no-deps /wheel/*.whl; \
    cd /opt/mirror; \
    # Sources of what is compiled already, and types: nobody imports them.
    find . -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.[ch]' \) -delete; \
    rm -f bin/activate* bin/Activate*; \
    bin/python3 -m compileall -q --invalidation-mode unchecked-hash -x /pygments/ lib; \
    find . -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +


FROM python
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="mirror" \
      org.opencontainers.image.description="A pull-through caching mirror and OCI registry" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/mirror /opt/mirror
COPY config/container.yaml /etc/mirror/mirror.yaml
# For whoever runs it as another user of group 0, too, as some clusters do.
RUN install -d -o 65532 -g 0 -m 0775 /var/lib/mirror
# Without storage.root everything is kept in oci-mirror below that.
ENV PATH=/opt/mirror/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    XDG_DATA_HOME=/var/lib/mirror
USER 65532:65532
VOLUME /var/lib/mirror
EXPOSE 5000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s CMD ["mirror", "health", "--config", "/etc/mirror/mirror.yaml"]
ENTRYPOINT ["mirror"]
CMD ["serve", "--config", "/etc/mirror/mirror.yaml"]
