# syntax=docker/dockerfile:1
# Three images: `gateway`, HTTP and jobs without torch, `engine`, NVIDIA's Triton with our engine in it, and `batch`, a node
# of a Ray cluster that renders offline.
#
#   docker build --target gateway -t stillmotion-gateway .
#   docker build --target engine  -t stillmotion-engine .
#   docker build --target batch   -t stillmotion-batch .
#
# docs/operations.md says which of these steps were run without a container engine, and which were not.

ARG PYTHON_IMAGE=python:3.11-slim
ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver:25.10-py3

# -- what the gateway imports, in a virtual environment; the stage itself is thrown away
FROM ${PYTHON_IMAGE} AS gateway-packages
ARG PREFIX=/opt/stillmotion
ARG EXTRAS=serve,triton,postgres,s3,otel
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY client client
COPY model model
COPY training training
COPY export export
COPY serving serving
COPY cli cli
# The servers tell which checkpoints there are: the shipped ones are not needed here.
RUN rm -rf model/zoo && python3 -m venv "$PREFIX" && "$PREFIX/bin/pip" install -c constraints.txt ./client ".[$EXTRAS]"
RUN "$PREFIX/bin/python" -c "import sys, importlib.util as found; sys.exit(found.find_spec('torch') is not None)"
RUN "$PREFIX/bin/stillmotion" serve --help

FROM ${PYTHON_IMAGE} AS gateway
ARG PREFIX=/opt/stillmotion
ENV PATH=${PREFIX}/bin:${PATH} PYTHONUNBUFFERED=1 STILLMOTION_HOST=0.0.0.0 STILLMOTION_PORT=8000
RUN useradd --system --uid 10001 --create-home --home-dir /data stillmotion
COPY --from=gateway-packages ${PREFIX} ${PREFIX}
USER 10001
WORKDIR /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python3", "-c", "import urllib.request as web; web.urlopen('http://127.0.0.1:8000/health/live', timeout=4)"]
ENTRYPOINT ["stillmotion"]
CMD ["serve", "--engine", "triton", "--triton-url", "triton:8001", "--log-json"]

# -- Triton, which loads serving.triton.model from PYTHONPATH for each model of the repository
FROM ${TRITON_IMAGE} AS engine
ARG PREFIX=/opt/stillmotion
ARG EXTRAS=engine,export,tensorrt,xformers
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY client client
COPY model model
COPY training training
COPY export export
COPY serving serving
COPY cli cli
RUN python3 -m pip install --target "$PREFIX" -c constraints.txt torch==2.13.0 ./client ".[$EXTRAS]"
RUN PYTHONPATH="$PREFIX" python3 -c "import torch, serving.engine.inprocess"
RUN useradd --system --uid 10001 --create-home --home-dir /data stillmotion && rm -rf /src
ENV PYTHONPATH=${PREFIX} PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
USER 10001
WORKDIR /data
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
    CMD ["python3", "-c", "import urllib.request as web; web.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]
ENTRYPOINT ["tritonserver"]
CMD ["--model-repository=/models", "--model-control-mode=poll", "--repository-poll-secs=5", \
     "--http-port=8000", "--grpc-port=8001", "--metrics-port=8002", "--exit-timeout-secs=60"]

# -- a node of a Ray cluster: KubeRay starts `ray start` in it, and submits `stillmotion batch` to it
FROM ${PYTHON_IMAGE} AS batch-packages
ARG PREFIX=/opt/stillmotion
ARG EXTRAS=engine,batch,s3,xformers
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY client client
COPY model model
COPY training training
COPY export export
COPY serving serving
COPY cli cli
# ray[default] has the server that `ray job submit` talks to.
RUN python3 -m venv "$PREFIX" \
    && "$PREFIX/bin/pip" install -c constraints.txt torch==2.13.0 ./client ".[$EXTRAS]" "ray[default]"
RUN "$PREFIX/bin/stillmotion" batch --help

FROM ${PYTHON_IMAGE} AS batch
ARG PREFIX=/opt/stillmotion
ENV PATH=${PREFIX}/bin:${PATH} PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
RUN useradd --system --uid 10001 --create-home --home-dir /data stillmotion
COPY --from=batch-packages ${PREFIX} ${PREFIX}
USER 10001
WORKDIR /data
EXPOSE 6379 8265 10001
HEALTHCHECK --interval=10s --timeout=10s --start-period=60s --retries=3 CMD ["ray", "health-check"]
CMD ["ray", "start", "--head", "--dashboard-host=0.0.0.0", "--block"]
