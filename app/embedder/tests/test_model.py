"""The vectors are those of the published model, whatever else is going on."""

import base64
import math
import struct
from concurrent.futures import ThreadPoolExecutor

import pytest

from embedder_service import Service


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("sentence", "similarity"),
    [("That is a very happy person", 0.943), ("That is a happy dog", 0.695), ("Today is a sunny day", 0.257)],
)
def test_the_known_example(service: Service, sentence: str, similarity: float) -> None:
    happy, other = service.embed("That is a happy person", sentence)
    assert cosine(happy, other) == pytest.approx(similarity, abs=0.01)


def test_a_vector_has_384_dimensions_and_length_one(service: Service) -> None:
    (vector,) = service.embed("a word")
    assert len(vector) == 384
    assert math.sqrt(cosine(vector, vector)) == pytest.approx(1, abs=1e-6)


def test_the_model_reads_256_tokens(service: Service) -> None:
    # One token each, between the two that the model adds.
    full, longer, shorter = service.embed("word " * 254, "word " * 254 + "storm", "word " * 253 + "storm")
    assert full == longer
    assert cosine(full, shorter) < 0.9999
    assert service.post(input="word " * 1000).json()["usage"]["prompt_tokens"] == 256


def test_a_text_in_a_batch_has_the_vector_it_has_alone(service: Service) -> None:
    texts = ["short", "a somewhat longer sentence about ships and harbours", "word " * 300]
    assert service.embed(*texts) == [service.embed(text)[0] for text in texts]


def test_equal_texts_at_the_same_time_have_equal_vectors(service: Service) -> None:
    texts = [f"text number {number % 5}" for number in range(60)]
    with ThreadPoolExecutor(12) as pool:
        vectors = list(pool.map(lambda text: tuple(service.embed(text)[0]), texts))
    assert len(set(vectors)) == 5
    assert all(vectors[number] == vectors[number % 5] for number in range(60))


def test_base64_carries_the_same_numbers(service: Service) -> None:
    (plain,) = service.embed("a word")
    packed = service.post(input="a word", encoding_format="base64").json()["data"][0]["embedding"]
    assert struct.unpack("<384f", base64.b64decode(packed)) == pytest.approx(plain, abs=1e-8)


def test_case_and_odd_characters_are_no_problem(service: Service) -> None:
    upper, lower, *_ = service.embed("HELLO", "hello", "\x00\x01", " ", "日本語", "🙂" * 500, "\ufffe", "a" * 30_000)
    assert upper == lower
