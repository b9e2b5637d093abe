"""What the unit tests share."""

from tests.running_fixtures import logs

__all__ = ["logs"]
