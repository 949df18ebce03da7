# The server with its model. Needs the network to build, none to run.
#   docker build -t cairn .                            CPU-only torch
#   docker build -t cairn --build-arg PIP_FLAGS="" .   torch with CUDA (several GB; run with --gpus all)
ARG PYTHON_IMAGE=python:3.11.15-slim-bookworm

FROM ${PYTHON_IMAGE} AS builder
ARG PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /app
COPY pyproject.toml constraints.txt ./
# The dependencies only, so that a change of our code does not install torch anew.
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > requirements.txt \
    && pip install ${PIP_FLAGS} -c constraints.txt -r requirements.txt
# The `cairn` command and the version: an installation that points to the packages in /app, empty here, filled below.
# Without an __init__.py each would be taken for a namespace, and stay one.
RUN python -c "import pathlib, tomllib; told = tomllib.load(open('pyproject.toml', 'rb'))['tool']['setuptools']; places = [pathlib.Path(told['package-dir'].get(top, top), *rest) for top, *rest in (name.split('.') for name in told['packages'])]; [(place.mkdir(parents=True, exist_ok=True), (place / '__init__.py').touch()) for place in places]" \
    && touch README.md \
    && pip install --no-deps --no-build-isolation -e .

FROM ${PYTHON_IMAGE} AS app
WORKDIR /app
COPY models/cairn-4m/ models/cairn-4m/
COPY pyproject.toml ./
COPY cache/ cache/
COPY engine/ engine/
COPY server/ server/
COPY clients/ clients/
# A model that was just trained may be readable by its owner only.
RUN chmod -R a+rX,go-w .

FROM ${PYTHON_IMAGE} AS runtime
LABEL org.opencontainers.image.title="cairn" \
      org.opencontainers.image.description="An inference server whose KV cache is a searchable memory" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 cairn \
    && useradd --uid 10001 --gid cairn --home-dir /nonexistent --no-create-home --shell /usr/sbin/nologin cairn \
    && install -d -o 10001 -g 10001 -m 700 /var/lib/cairn
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NUMBA_CACHE_DIR=/tmp/numba \
    HF_HUB_OFFLINE=1 \
    TRANSFORMERS_OFFLINE=1
WORKDIR /app
COPY --from=builder /opt/venv /opt/venv
COPY --from=app /app /app
# By number, so that an orchestrator can see that it is not root.
USER 10001:10001
EXPOSE 8000
# http.client, because it ignores proxy variables that Docker may set. /health answers 503 while the model loads.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import http.client, sys; c = http.client.HTTPConnection('127.0.0.1', 8000, timeout=4); c.request('GET', '/health'); sys.exit(c.getresponse().status != 200)"]
CMD ["python", "-m", "server", "serve", "--model", "/app/models/cairn-4m", "--host", "0.0.0.0", "--port", "8000"]
