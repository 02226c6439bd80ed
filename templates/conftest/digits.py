"""What the tests train on."""

import pytest


@pytest.fixture(scope="session")
def flags() -> list[str]:
    """Command-line flags under which the project trains offline in seconds."""
    return []
