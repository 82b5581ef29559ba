# The image that docker-compose.yml runs: the locked dependencies, the package, and a user without rights.
FROM python:3.13-slim AS build
WORKDIR /src
COPY requirements.lock ./
RUN python -m venv /opt/sectorwire \
    && /opt/sectorwire/bin/pip install --no-cache-dir --require-hashes --requirement requirements.lock
COPY pyproject.toml README.md LICENSE sectorwire.py ./
COPY poller poller
COPY consumers consumers
RUN /opt/sectorwire/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.13-slim
COPY --from=build /opt/sectorwire /opt/sectorwire
ENV PATH=/opt/sectorwire/bin:$PATH PYTHONUNBUFFERED=1
RUN useradd --system --create-home --home-dir /var/lib/sectorwire sectorwire
USER sectorwire
WORKDIR /var/lib/sectorwire
ENTRYPOINT ["sectorwire"]
CMD ["--help"]
