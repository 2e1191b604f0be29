# `retr serve` for the indices in a folder of this machine. An index holds absolute paths of its images,
# so the folder is mounted under its own path. Open http://127.0.0.1:8000/ and give the token as password.
#
#   docker build --tag retr .   # or with --build-arg TORCH_OPTIONS="--index-url URL": see below
#   docker run --rm --env RETR_TOKEN=secret --publish 127.0.0.1:8000:8000 \
#       --volume "$PWD:$PWD" --workdir "$PWD" retr --index photos-index
FROM python:3.11 AS build
# pip takes torch for GPUs, some gigabytes larger than torch for CPUs. For the latter, set TORCH_OPTIONS to the
# options that pytorch.org gives for pip and CPU.
ARG TORCH_OPTIONS=""
# Compile hnswlib for any x86-64 processor: the image may run on another machine.
ENV HNSWLIB_NO_NATIVE=1
RUN python -m venv /opt/retr \
    && /opt/retr/bin/pip install --no-cache-dir torch torchvision $TORCH_OPTIONS
COPY . /src
RUN /opt/retr/bin/pip install --no-cache-dir /src

FROM python:3.11-slim
COPY --from=build /opt/retr /opt/retr
EXPOSE 8000
ENTRYPOINT ["/opt/retr/bin/retr", "serve", "--host", "0.0.0.0"]
