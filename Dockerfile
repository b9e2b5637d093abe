# The gateway's image. docs/deployment.md says how to build it, and what of it has been proven.
#
# The base is named once. Its tag moves; to pin what it stands for today, append the digest that
# your registry reports, here or with --build-arg:
#   docker buildx imagetools inspect docker.io/library/python:3.11-slim-bookworm
#   --build-arg PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm@sha256:<that digest>
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1
WORKDIR /build
# `tools` builds and is left behind; /opt/app is what ships, without pip.
RUN python3 -m venv tools && python3 -m venv --without-pip /opt/app
COPY requirements.lock requirements-build.lock ./
# Everything that is ever downloaded, each file checked against the locks' hashes. No wheel, no
# build: nothing here is compiled. The locks are complete, so nothing is resolved either.
RUN tools/bin/pip --python /opt/app/bin/python install --require-hashes --no-deps \
    --only-binary :all: --requirement requirements.lock \
    && tools/bin/pip install --require-hashes --no-deps --only-binary :all: \
    --requirement requirements-build.lock
COPY . .
RUN tools/bin/pip wheel --no-index --no-deps --no-build-isolation --wheel-dir wheels . \
    && tools/bin/pip --python /opt/app/bin/python install --no-index --no-deps wheels/*.whl

FROM ${PYTHON_IMAGE}
ARG PYTHON_IMAGE
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="DashScope image gateway" \
      org.opencontainers.image.description="An OpenAI-compatible image API in front of Alibaba DashScope" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.base.name="${PYTHON_IMAGE}"
# The base brings pip and setuptools for its own Python; what runs here needs neither.
RUN rm -rf /usr/local/bin/pip* /usr/local/bin/wheel /usr/local/lib/python3*/ensurepip \
    /usr/local/lib/python3*/site-packages/*
# Only /tmp is ever written, so the root file system may be read-only.
ENV HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# Owned by root: the gateway cannot change its own code. The metadata of every package is in it,
# which is what scanners make an SBOM from.
COPY --from=build /opt/app /opt/app
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["/opt/app/bin/python", "-IS", "-c", "from http.client import HTTPConnection as C; c = C('127.0.0.1', 8080, timeout=4); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["/opt/app/bin/gateway"]
CMD ["serve", "--config", "/etc/gateway/gateway.yaml", "--host", "::", "--port", "8080"]
