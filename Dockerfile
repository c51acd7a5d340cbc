# worldsim with real Minecraft (1.11.2) for MineRL 0.4.4, without a screen.
#
# UNTESTED: this file was written where neither Docker nor Minecraft could be had. It follows what
# DreamerV3's authors do. The part that is tested is the client against the stand-in, see
# `python -m envs.minerl_setup`. Minecraft is downloaded by the mod at its first start and licensed
# by Mojang; by running it you accept the Minecraft EULA.
#
#   docker build -f Dockerfile -t worldsim-minerl .
#   docker run --rm worldsim-minerl python -m envs.minerl_setup --check
#   docker run --rm -v "$PWD/runs:/worldsim/runs" worldsim-minerl \
#       python experiments/collect.py --env minerl-navigate-dense --dataset minerl-navigate-dense/explorer-v0
FROM ubuntu:22.04

ENV DEBIAN_FRONTEND=noninteractive PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1
RUN apt-get update && apt-get install -y --no-install-recommends \
        software-properties-common git build-essential \
        openjdk-8-jdk-headless openjdk-8-jre \
        xvfb xauth x11-xserver-utils libgl1-mesa-dri libgl1-mesa-glx libegl1 libglfw3 \
    && add-apt-repository -y ppa:deadsnakes/ppa \
    && apt-get update \
    && apt-get install -y --no-install-recommends python3.11 python3.11-dev python3.11-venv \
    && rm -rf /var/lib/apt/lists/*

# MINERL_HEADLESS makes the mod's launcher use xvfb-run. JDK 8 has to come first on the path.
ENV JAVA_HOME=/usr/lib/jvm/java-8-openjdk-amd64 MINERL_HEADLESS=1 MUJOCO_GL=egl
# Recordings outlive the container, in the folder that it shares.
ENV MINARI_DATASETS_PATH=/worldsim/runs/datasets
ENV PATH=/venv/bin:$JAVA_HOME/bin:$PATH
RUN python3.11 -m venv /venv

WORKDIR /worldsim
COPY . .
RUN pip install -e .
# The patched wheel carries the compiled mod; the client of PyPI can not build it any more.
RUN python -m envs.minerl_setup --real

CMD ["python", "-m", "envs.minerl_setup", "--check"]
