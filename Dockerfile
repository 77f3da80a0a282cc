# docker build -t diffuse .                            a processor alone
# docker build -t diffuse:cuda --build-arg TORCH=cu130 .   NVIDIA GPUs
# docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" diffuse train images --minutes 5
# docker run --rm --gpus all --shm-size 1g -v "$PWD:/work" diffuse:cuda sample model.safetensors

FROM python:3.13-slim AS build
COPY . /src
# hadolint ignore=DL3013
RUN pip install --no-cache-dir build && python -m build --wheel --outdir /wheels /src

FROM python:3.13-slim
# A folder of https://download.pytorch.org/whl/: cpu, or that of a version of CUDA.
ARG TORCH=cpu
# hadolint ignore=DL3013
RUN pip install --no-cache-dir torch torchvision --index-url "https://download.pytorch.org/whl/${TORCH}"
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir /wheels/*.whl \
    && rm -r /wheels \
    && useradd --create-home --uid 1000 diffuse \
    && install -d -o diffuse -g diffuse /work
# A writable home for caches, also under --user.
ENV HOME=/tmp PYTHONUNBUFFERED=1
USER 1000
WORKDIR /work
ENTRYPOINT ["diffuse"]
CMD ["--help"]
