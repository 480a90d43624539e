"""The model: text in, unit vector out."""

import os
from dataclasses import dataclass
from pathlib import Path

# The published wheels report to their maker unless told otherwise before they are loaded.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

NAME = "all-MiniLM-L6-v2"
DIMENSIONS = 384
MAX_TOKENS = 256  # the length the model was published for; what follows is not read


@dataclass(frozen=True, slots=True)
class Embedding:
    """A text's vector (float32, 384 numbers, length 1) and how many tokens the model read for it."""

    vector: NDArray[np.float32]
    tokens: int


class Model:
    """all-MiniLM-L6-v2 on one core."""

    def __init__(self, directory: Path) -> None:
        """Load model.onnx (which maps model.safetensors into memory) and tokenizer.json from directory.

        Raises:
            RuntimeError: the files do not give the model's published example, so they are damaged or another model's.
        """
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._tokenizer.enable_truncation(MAX_TOKENS)  # the file says 128, and pads
        self._tokenizer.no_padding()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(directory / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self._prove()

    def embed(self, text: str) -> Embedding:
        """The vector of one text. Takes 4 to 30 ms of one core; releases the interpreter lock meanwhile."""
        ids = np.array(self._tokenizer.encode(text).ids, dtype=np.int64)
        (vector,) = self._session.run(None, {"ids": ids})
        return Embedding(vector, len(ids))

    def _prove(self) -> None:
        happy, happier = (self.embed(f"That is a {words} person").vector for words in ("happy", "very happy"))
        if not abs(float(happy @ happier) - 0.943) <= 0.01:  # also when it is not a number
            raise RuntimeError(
                f"the model's known example gives {happy @ happier:.3f} instead of 0.943: install it again"
            )
