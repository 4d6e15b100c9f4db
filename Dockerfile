# The server as an image: `cpu` (the default target) and `cuda`, built from one file.
#
#   docker build --build-arg TORCH_INDEX_URL=… -t dijiang-serving:0.1.0 .
#   docker build --target cuda -t dijiang-serving:0.1.0-cuda .
#
# TORCH_INDEX_URL is an extra package index that holds PyTorch's CPU wheels. On x86-64 the general
# index has only the CUDA build, which is several gigabytes larger: the cpu target refuses it.
# PYTHON_IMAGE is the base; pin it by digest in a release. Every package is installed by its hash,
# from deploy/requirements-*.txt (`make lock`). See docs/deployment.md.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm


FROM ${PYTHON_IMAGE} AS build
# The compiler stays in this stage, so its version does not reach the image.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# Without pip and setuptools of its own: the final image installs nothing.
RUN python -m venv --without-pip /opt/dijiang
# Dependencies before sources: a change of code installs nothing again.
COPY deploy/requirements-*.txt deploy/
RUN python -m pip install --require-hashes -r deploy/requirements-build.txt


FROM build AS wheel
COPY . .
RUN python -m pip wheel --no-deps --no-build-isolation --wheel-dir /wheel .


FROM build AS build-cpu
ARG TORCH_INDEX_URL
RUN PIP_EXTRA_INDEX_URL="${TORCH_INDEX_URL}" python -m pip --python /opt/dijiang/bin/python \
        install --require-hashes -r deploy/requirements-cpu.txt \
    && /opt/dijiang/bin/python -c "import sys, torch; sys.exit(torch.version.cuda and 'This is the CUDA build of torch. Give --build-arg TORCH_INDEX_URL=<index of the CPU wheels>, or --target cuda.')"
COPY --from=wheel /wheel /wheel
RUN python -m pip --python /opt/dijiang/bin/python install --no-deps --no-index /wheel/*.whl \
    && /opt/dijiang/bin/python -I -c "import sys; from dijiang_runtime.ops import cpu; sys.exit(None if cpu.is_available() else 'The kernels were not built.')" \
    && rm -rf /opt/dijiang/lib/python*/site-packages/torch/include /opt/dijiang/lib/python*/site-packages/torch/test \
    && find /opt/dijiang/lib/python*/site-packages/torch/bin -type f ! -name torch_shm_manager -delete


FROM build AS build-cuda
RUN python -m pip --python /opt/dijiang/bin/python \
        install --require-hashes -r deploy/requirements-cuda.txt \
    && /opt/dijiang/bin/python -c "import sys, torch; sys.exit(None if torch.version.cuda else 'This is the CPU build of torch.')"
COPY --from=wheel /wheel /wheel
RUN python -m pip --python /opt/dijiang/bin/python install --no-deps --no-index /wheel/*.whl \
    && rm -rf /opt/dijiang/lib/python*/site-packages/torch/include /opt/dijiang/lib/python*/site-packages/torch/test \
    && find /opt/dijiang/lib/python*/site-packages/torch/bin -type f ! -name torch_shm_manager -delete


FROM ${PYTHON_IMAGE} AS runtime
LABEL org.opencontainers.image.title="dijiang-serving" \
      org.opencontainers.image.description="Linear-attention language models behind the OpenAI API" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0"
# All that is written goes to /tmp, so that the root may be read-only.
ENV PATH=/opt/dijiang/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    USER=dijiang \
    XDG_CACHE_HOME=/tmp/cache \
    HF_HOME=/tmp/huggingface \
    TORCHINDUCTOR_CACHE_DIR=/tmp/inductor \
    TRITON_CACHE_DIR=/tmp/triton \
    DIJIANG_HOST=0.0.0.0 \
    DIJIANG_PORT=8000
# A number, so that Kubernetes can see that it is not root.
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=15m --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ['DIJIANG_PORT']}/readyz\", timeout=4)"]
# Its first words, without a key: "Listening on 0.0.0.0 would let anyone …". Give DIJIANG_API_KEYS.
ENTRYPOINT ["dijiang"]
CMD ["serve"]


FROM runtime AS cuda
ENV DIJIANG_DEVICE=cuda NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build-cuda /opt/dijiang /opt/dijiang


FROM runtime AS cpu
COPY --from=build-cpu /opt/dijiang /opt/dijiang
