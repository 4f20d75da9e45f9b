# Two targets: migrator (the one-shot job) and postgres (the server with its init SQL baked in).

FROM python:3.13-slim AS build
WORKDIR /build
COPY requirements.lock .
# The job needs no pip; what it imports is all that goes on to the next stage.
RUN python3 -m venv /app \
 && /app/bin/python -m pip install --no-cache-dir --no-compile --require-hashes --only-binary=:all: -r requirements.lock \
 && /app/bin/python -m pip uninstall --yes pip \
 # Headers, tests and remote protocols of Arrow, none of which the job has a use for.
 && rm -rf /app/lib/python3*/site-packages/pyarrow/include /app/lib/python3*/site-packages/pyarrow/tests \
      /app/lib/python3*/site-packages/pyarrow/src /app/lib/python3*/site-packages/pyarrow/*flight*
COPY migrator /build/migrator
RUN cp -r /build/migrator "$(/app/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/migrator" \
 && /app/bin/python -m compileall -q /app/lib

FROM python:3.13-slim AS migrator
COPY --from=build /app /app
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    CLIENTS_DIR=/clients REPORTS_DIR=/reports BACKUPS_DIR=/backups SECRETS_DIR=/run/secrets/clients
USER 10001:10001
ENTRYPOINT ["/app/bin/python", "-m", "migrator"]
CMD ["--help"]

# Only this one has the Docker SDK; the migrate job needs no Docker socket and gets none.
FROM build AS build-cutover
COPY requirements-cutover.lock .
RUN python3 -m pip --python /app/bin/python install --no-cache-dir --no-compile --require-hashes --only-binary=:all: \
      -r requirements-cutover.lock

FROM python:3.13-slim AS cutover
COPY --from=build-cutover /app /app
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    CLIENTS_DIR=/clients REPORTS_DIR=/reports BACKUPS_DIR=/backups SECRETS_DIR=/run/secrets/clients
ENTRYPOINT ["/app/bin/python", "-m", "migrator"]
CMD ["--help"]

FROM postgres:16-alpine AS postgres
COPY initdb/ /docker-entrypoint-initdb.d/
COPY initdb/bin/entrypoint.sh initdb/bin/healthcheck.sh /usr/local/bin/
ENTRYPOINT ["entrypoint.sh"]
CMD ["postgres"]
