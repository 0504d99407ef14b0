# AMMNet-sparse on CUDA (the default), or on a CPU alone:
#   docker build -t ammnet-sparse .
#   docker build -t ammnet-sparse --build-arg DEVICE=cpu .
#   docker run --rm --gpus all -v "$PWD:/work" ammnet-sparse ammnet predict --out completed --depth depth.png ...
# The steps are those of `make setup`. The CUDA image brings the compiler of the CUDA kernels.
ARG DEVICE=cuda

FROM nvidia/cuda:12.8.1-devel-ubuntu24.04 AS cuda
ENV AMMNET_SPARSE_CUDA=1

FROM ubuntu:24.04 AS cpu
ENV AMMNET_SPARSE_CUDA=0

FROM ${DEVICE}
# Ubuntu's release fixes the versions.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates g++ make python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/ammnet-sparse
COPY . .
RUN make setup && rm -rf build /root/.cache
ENV PATH="/opt/ammnet-sparse/.venv/bin:${PATH}"
WORKDIR /work
CMD ["ammnet", "--help"]
