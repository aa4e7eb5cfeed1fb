"""Reuters R8: MiniLM with a linear head that names the topic of a news text, and its data.

The encoder is as its package carries it; the head is trained on texts of the train part, which nothing else
uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from benchmarks.models import export_encoder, kept, minilm, package

Array = NDArray[Any]
LONGEST = 128
_HEAD_TEXTS = 1500
_NAMES = ("input_ids", "attention_mask", "token_type_ids")


def texts(part: str) -> tuple[list[str], Array]:
    """The texts of a part, "train" (5,486) or "test" (2,190), in a fixed random order, and their classes."""
    table = package("orangecontrib") / "text" / "datasets" / f"reuters-r8-{part}.tab"
    rows = [row.split("\t", 1) for row in table.read_text("utf-8").splitlines()[3:] if "\t" in row]
    topics = sorted({topic for topic, _ in rows})
    order = np.random.default_rng(0).permutation(len(rows))
    return [rows[i][1] for i in order], np.array([topics.index(rows[i][0]) for i in order])


def encoded(lines: Sequence[str]) -> list[dict[str, Array]]:
    """Each text by itself as the model takes it, [1, tokens], cut at 128 tokens."""
    tokenizer = Tokenizer.from_file(str(minilm() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LONGEST)
    fields = ("ids", "attention_mask", "type_ids")
    return [
        {name: np.array([getattr(e, field)], np.int64) for name, field in zip(_NAMES, fields, strict=True)}
        for e in tokenizer.encode_batch(list(lines))
    ]


def samples(part: str, start: int, stop: int) -> tuple[list[dict[str, Array]], Array]:
    """Some samples of a part and their classes."""
    lines, labels = texts(part)
    return encoded(lines[start:stop]), labels[start:stop]


def calibration(count: int) -> tuple[list[dict[str, Array]], Array]:
    """Samples of the train part that the head was not trained on."""
    return samples("train", _HEAD_TEXTS, _HEAD_TEXTS + count)


def model() -> Path:
    """MiniLM, mean over tokens and the head, as ONNX: token ids, mask and types to 8 logits."""

    def write(path: Path) -> None:
        import torch
        import transformers

        encoder = transformers.AutoModel.from_pretrained(minilm(), local_files_only=True).eval()

        class Classifier(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.encoder = encoder
                self.head = torch.nn.Linear(encoder.config.hidden_size, 8)

            def pooled(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
                hidden = self.encoder(input_ids, attention_mask, token_type_ids).last_hidden_state
                mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
                return (hidden * mask).sum(1) / mask.sum(1)

            def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
                return self.head(self.pooled(input_ids, attention_mask, token_type_ids))

        network = Classifier()
        given, labels = samples("train", 0, _HEAD_TEXTS)
        with torch.no_grad():
            features = torch.cat([network.pooled(*(torch.from_numpy(f[n]) for n in _NAMES)) for f in given])
        _train_head(network.head, features, torch.from_numpy(labels))
        export_encoder(network, path, ["logits"])

    return kept(f"minilm-r8-{_HEAD_TEXTS}", write)


def _train_head(head: Any, features: Any, labels: Any) -> None:
    """Logistic regression with a little weight decay."""
    import torch

    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Any:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(head(features), labels)
        loss = loss + 1e-4 * head.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)


def logits(onnx_model: Path | bytes, given: Sequence[dict[str, Array]]) -> Array:
    """What a model says of samples, by ONNX Runtime, [samples, 8]; padded together in order of length."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others may need the cores
    session = onnxruntime.InferenceSession(onnx_model, settings)
    takes = {i.name for i in session.get_inputs()}
    order = np.argsort([f["input_ids"].shape[1] for f in given], kind="stable")
    results: list[Array] = [np.empty(0)] * len(given)
    for first in range(0, len(order), 16):
        rows = order[first : first + 16]
        longest = max(given[k]["input_ids"].shape[1] for k in rows)
        batch = {
            name: np.concatenate(
                [np.pad(given[k][name], ((0, 0), (0, longest - given[k][name].shape[1]))) for k in rows]
            )
            for name in _NAMES
            if name in takes
        }
        for k, row in zip(rows, session.run(None, batch)[0], strict=True):
            results[k] = row
    return np.stack(results)
