"""The providers: protocol, faults, and vectors that can be stored."""

import math
from collections.abc import Generator

import pytest
from api_support.embedder import StubEmbedder

from arches_api.lib.embeddings import EmbeddingsAway, EmbeddingsRefused, HashEmbeddings, HttpEmbeddings, as_sql


@pytest.fixture
def stub() -> Generator[StubEmbedder]:
    """A service that answers."""
    service = StubEmbedder()
    yield service
    service.close()


async def test_the_http_provider_speaks_openai(stub: StubEmbedder) -> None:
    provider = HttpEmbeddings(stub.url, "all-MiniLM-L6-v2", 384, "a key")
    vectors = await provider.embed(["first text", "second text"], patience=5)
    expected = await HashEmbeddings(384).embed(["first text", "second text"], patience=5)
    assert vectors == [pytest.approx(vector) for vector in expected]
    assert stub.calls[0]["path"] == "/v1/embeddings"
    assert stub.calls[0]["model"] == "all-MiniLM-L6-v2"
    assert stub.calls[0]["authorization"] == "Bearer a key"
    await provider.close()


async def test_a_failure_is_away_and_the_next_call_does_not_wait(stub: StubEmbedder) -> None:
    provider = HttpEmbeddings(stub.url, "m", 384, None)
    stub.gate.clear()
    with pytest.raises(EmbeddingsAway, match="Timeout"):
        await provider.embed(["text"], patience=0.2)
    with pytest.raises(EmbeddingsAway, match="resting"):
        await provider.embed(["text"], patience=0.2)
    await provider.close()


@pytest.mark.parametrize("status", [401, 429, 500, 503])
async def test_an_error_of_the_service_is_away(stub: StubEmbedder, status: int) -> None:
    stub.status = status
    provider = HttpEmbeddings(stub.url, "m", 384, None)
    with pytest.raises(EmbeddingsAway):
        await provider.embed(["text"], patience=5)
    await provider.close()


async def test_a_text_that_the_service_will_not_take_is_refused(stub: StubEmbedder) -> None:
    stub.status = 422
    provider = HttpEmbeddings(stub.url, "m", 384, None)
    with pytest.raises(EmbeddingsRefused):
        await provider.embed(["text"], patience=5)
    stub.status = 200
    assert await provider.embed(["text"], patience=5)
    await provider.close()


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"data": []},
        {"data": [{"index": 0, "embedding": [1.0] * 383}]},
        {"data": [{"index": 0, "embedding": [0.0] * 384}]},
        {"data": [{"index": 0, "embedding": [math.inf] * 384}]},
        {"data": [{"index": 0, "embedding": "AAAA"}]},
    ],
    ids=["nothing", "empty", "short", "zero", "infinite", "base64"],
)
async def test_an_unusable_answer_is_away(
    stub: StubEmbedder, monkeypatch: pytest.MonkeyPatch, answer: dict[str, object]
) -> None:
    monkeypatch.setattr(stub, "answer", lambda texts: answer)
    provider = HttpEmbeddings(stub.url, "m", 384, None)
    with pytest.raises(EmbeddingsAway):
        await provider.embed(["text"], patience=5)
    await provider.close()


async def test_the_hashing_provider_is_deterministic_and_likes_common_words() -> None:
    provider = HashEmbeddings(384)
    dog, dogs, rain, empty = await provider.embed(["a happy dog", "happy dogs", "it rains", ""], patience=1)
    assert [dog] == await provider.embed(["a happy dog"], patience=1)
    assert math.isclose(math.hypot(*dog), 1) and math.isclose(math.hypot(*empty), 1)
    assert math.sumprod(dog, dogs) > math.sumprod(dog, rain) + 0.2


def test_vectors_become_text_for_postgres() -> None:
    assert as_sql([0.5, -1.0, 1e-9]) == "[0.5,-1,1e-09]"
