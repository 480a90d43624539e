"""An application whose database and Redis are away: enough for everything before them."""

import pytest
from api_support.environment import settings_with
from quart import Quart
from quart.typing import TestClientProtocol as Client

from arches_api.app import create_app


@pytest.fixture
def app() -> Quart:
    """The application, not started."""
    return create_app(settings_with())


@pytest.fixture
def client(app: Quart) -> Client:
    """Talks to the application without a server."""
    return app.test_client()
