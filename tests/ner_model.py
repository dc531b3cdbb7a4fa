"""A token classification model of a few kilobytes, made on the spot: certain words have labels, all others none.

It is a table (one row of logits for each token) in an ONNX file, with a WordPiece tokenizer and a config.json, so that
the whole path runs as with a model of hundreds of megabytes: worker process, tokenizer, windows, onnxruntime, spans.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
WORDS: Mapping[str, str] = {
    "alice": "B-PER",
    "bob": "B-PER",
    "johnson": "I-PER",
    "zaph": "B-PER",  # zaphod is split, and only its beginning has a label
    "##od": "O",
    "ob": "O",  # and of obelix only the end
    "##elix": "I-PER",
    "new": "B-LOC",
    "york": "I-LOC",
    "berlin": "B-LOC",
}
"""Tokens by label. A word that is none of them is read as [UNK], which has no label."""


def make(
    folder: Path,
    *,
    length: int = 32,
    labels: Sequence[str] = LABELS,
    told: Sequence[str] | None = None,
    words: Mapping[str, str] = WORDS,
) -> Path:
    """Write a model that reads ``length`` tokens at once. ``told`` are the labels config.json claims, if others."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words]
    table = np.zeros((len(tokens), len(labels)), dtype=np.float32)
    table[:, 0] = 4.0
    for row, token in enumerate(tokens):
        if words.get(token, "O") in labels:
            table[row, labels.index(words.get(token, "O"))] = 8.0
    shape = ["batch", "tokens"]
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["logits"])],
        "table",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [*shape, len(labels)])],
        [numpy_helper.from_array(table, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")
    tokenizer = Tokenizer(models.WordPiece({each: row for row, each in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {str(row): each for row, each in enumerate(told or labels)}
    config = {"model_type": "bert", "max_position_embeddings": length, "id2label": named}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
