"""Command-line flags that the tests use."""

import pytest


@pytest.fixture(scope="session")
def flags() -> list[str]:
    """Command-line flags with which the project trains offline in seconds."""
    return []
