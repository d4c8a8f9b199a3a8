# llmkit with its page, on a CPU: docs/page.md.
FROM python:3.11-slim-bookworm AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# A compiler, for llama.cpp. Debian's newest, as its security updates are wanted.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/llmkit
ENV PATH=/opt/llmkit/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY constraints.txt llama-cpp.cmake ./
# Not for this machine's processor alone (GGML_NATIVE): an image may run on another. As in the
# Makefile, only llama.cpp's library is built.
RUN CMAKE_ARGS="-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF \
    -DCMAKE_PROJECT_llama_cpp_INCLUDE=/src/llama-cpp.cmake" \
    pip install -c constraints.txt --no-deps llama-cpp-python
# The index of PyTorch's CPU wheels, which "Get Started" on pytorch.org names: with it the image is
# several GB smaller.
ARG TORCH_INDEX=""
RUN pip install -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch
COPY . .
RUN pip install -c constraints.txt ".[page,parquet]"

FROM python:3.11-slim-bookworm
# libgomp1: ggml's threads.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 llmkit
COPY --from=build /opt/llmkit /opt/llmkit
ENV PATH=/opt/llmkit/bin:$PATH PYTHONUNBUFFERED=1
# Models in runs/, as in a checkout: proofs name their checkpoints by paths such as runs/demo.
WORKDIR /llmkit
USER 1000
EXPOSE 8501
HEALTHCHECK --interval=10s --start-period=30s CMD ["python3", "-c", \
    "from urllib.request import urlopen; urlopen('http://127.0.0.1:8501/_stcore/health')"]
CMD ["llmkit", "page", "runs", "--host", "0.0.0.0", "--no-browser"]
