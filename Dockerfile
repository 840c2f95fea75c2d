# The two commands in a container, for processors (torch's CPU build):
#     docker build -t acs-kit .
#     docker run --rm -v "$PWD/reports:/home/acs/acs-kit/reports" acs-kit          # the main job
#     docker run --rm acs-kit --test                                              # the tests
# With a GPU: docker build --build-arg TORCH_INDEX= ..., docker run --gpus all ...
FROM python:3.11-slim-bookworm
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home acs
USER acs
WORKDIR /home/acs/acs-kit
COPY --chown=acs . .
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_EXTRA_INDEX_URL=$TORCH_INDEX PIP_NO_CACHE_DIR=1
RUN ./run_all.sh --dry-run
ENTRYPOINT ["./run_all.sh"]
