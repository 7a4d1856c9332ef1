"""What integration tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from small_service import Service, run_service
from tracking_server import Postgres, TrackingServer, find_postgres


@pytest.fixture(scope="session")
def tracking_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingServer]:
    """`mlflow server` over PostgreSQL, running."""
    binaries = find_postgres()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed: Debian's package `postgresql` has it")
    pytest.importorskip("psycopg2", reason="the driver of PostgreSQL is not installed: it is in the extra `dev`")
    postgres = Postgres(binaries)
    server = TrackingServer(postgres.uri, tmp_path_factory.mktemp("tracking_server") / "artifacts")
    try:
        server.start()
        yield server
        server.kill()
    finally:
        postgres.stop()


@pytest.fixture(scope="session")
def service(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The serving application over HTTP."""
    with run_service(tmp_path_factory.mktemp("service")) as running:
        yield running
