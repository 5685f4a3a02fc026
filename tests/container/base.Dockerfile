# A stand-in for the PyTorch image: torch among the system's own packages. For tests only, never published.
ARG BARE
FROM ${BARE}
ARG TORCH
ARG TORCHVISION
# numpy as the image before it has it: whichever is new.
# hadolint ignore=DL3013
RUN --mount=type=secret,id=ca \
    if [ -s /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi; \
    python3 -m pip install --quiet --break-system-packages --no-cache-dir "torch==${TORCH}" "torchvision==${TORCHVISION}" numpy \
    && python3 -c 'import torch, torchvision; print(torchvision.ops.nms(torch.rand(4, 4).cumsum(1), torch.rand(4), 0.5))'
