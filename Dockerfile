# syntax=docker/dockerfile:1
# NOT BUILT YET: no container engine was at hand where this was written. Read it as a first version.
#
#   docker build --target gateway -t stillmotion-gateway .    HTTP and jobs; no torch
#   docker build --target engine  -t stillmotion .            the gateway with the engine in its process

FROM python:3.11-slim AS base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
WORKDIR /app
RUN useradd --create-home --uid 10001 stillmotion && mkdir /data && chown stillmotion /data
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY client client
COPY model model
COPY training training
COPY export export
COPY serving serving
COPY cli cli

FROM base AS gateway
RUN pip install -c constraints.txt ./client ".[serve]"
USER stillmotion
WORKDIR /data
EXPOSE 8000
ENTRYPOINT ["stillmotion"]
CMD ["serve", "--host", "0.0.0.0", "--engine", "triton"]

FROM base AS engine
RUN pip install -c constraints.txt torch==2.13.0 && pip install -c constraints.txt ./client ".[serve,engine]"
USER stillmotion
WORKDIR /data
EXPOSE 8000
ENTRYPOINT ["stillmotion"]
CMD ["serve", "--host", "0.0.0.0"]
