"""Paths that no route has: what OpenAI serves there, or what is wrong with the base URL."""

from __future__ import annotations

import pytest

from gateway.api.paths import unserved
from gateway.domain import errors


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/v1/images/variations", errors.EndpointRetired),
        ("/images/variations", errors.EndpointRetired),
        ("/openai/deployments/d/images/variations", errors.EndpointRetired),
        ("/v1/chat/completions", errors.Unsupported),
        ("/chat/completions", errors.Unsupported),
        ("/v1/responses", errors.Unsupported),
        ("/v1//responses/", errors.Unsupported),
        ("/openai/v1/responses", errors.Unsupported),
        ("/openai/deployments/d/chat/completions", errors.Unsupported),
        ("/v1/files/file-1/content", errors.Unsupported),
        ("/v1", errors.NotFound),
        ("/", errors.NotFound),
        ("/v2/images/generations", errors.NotFound),
        ("/v1/chats", errors.NotFound),
        ("/openai/deployments", errors.NotFound),
    ],
)
def test_what_an_unserved_path_is_answered(path: str, kind: type[errors.GatewayError]) -> None:
    """Each answer names the endpoint that there is; a refusal is not to be tried again."""
    error = unserved("POST", path)

    assert type(error) is kind
    assert "POST /v1/images/generations" in error.message
    assert error.should_retry is False


def test_a_path_is_shown_as_it_was_asked_for_but_not_in_whole() -> None:
    """A doubled prefix is seen at once; a path of a mile is not repeated."""
    assert "POST /v1/v1/images/generations" in unserved("POST", "/v1/v1/images/generations").message
    assert len(unserved("GET", "/" + "x" * 5000).message) < 300
