"""Settings from the environment, checked at start."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


class SettingsError(ValueError):
    """A setting is missing or wrong; the message names the variable and what to write."""


@dataclass(frozen=True)
class Settings:
    """How the service runs. All limits are per process."""

    model_dir: Path
    host: str = "127.0.0.1"
    port: int = 8090
    max_requests: int = 32  # admitted at a time; the next one gets 503
    max_texts: int = 64  # per request
    max_characters: int = 32_768  # per text; the model reads its first 256 tokens
    max_body_bytes: int = 4_194_304


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    """Read EMBEDDER_* variables.

    Raises:
        SettingsError: a variable is missing, not a number, out of range, or the model's files are not there.
    """
    model_dir = Path(environ.get("EMBEDDER_MODEL_DIR", ""))
    if not (model_dir / "model.onnx").is_file():
        raise SettingsError(
            f"EMBEDDER_MODEL_DIR is {environ.get('EMBEDDER_MODEL_DIR', '')!r}, which holds no model.onnx; "
            "set it to the artefact's directory model"
        )
    return Settings(
        model_dir=model_dir,
        host=environ.get("EMBEDDER_HOST", Settings.host),
        port=_number(environ, "EMBEDDER_PORT", Settings.port, 0, 65_535),
        max_requests=_number(environ, "EMBEDDER_MAX_REQUESTS", Settings.max_requests, 1, 1024),
        max_texts=_number(environ, "EMBEDDER_MAX_TEXTS", Settings.max_texts, 1, 2048),
        max_characters=_number(environ, "EMBEDDER_MAX_CHARACTERS", Settings.max_characters, 1, 1_048_576),
        max_body_bytes=_number(environ, "EMBEDDER_MAX_BODY_BYTES", Settings.max_body_bytes, 1024, 67_108_864),
    )


def _number(environ: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    text = environ.get(name, str(default))
    if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
        raise SettingsError(f"{name} is {text!r}; set it to a whole number from {low} to {high}")
    return int(text)
