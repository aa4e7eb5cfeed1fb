"""Ranks sentences by meaning with a compiled model. Needs Python, NumPy and hasten's runtime, nothing else.

    python -I examples/rank.py build/minilm.hasten build/sentences.npz

To show that it needs nothing else, it refuses to import any other package, and hides all programs, the
compiler among them. `demo.py` writes the .npz file: sentences, queries and their token ids.
"""

from __future__ import annotations

import os
import sys
import time
from importlib.abc import MetaPathFinder

AT_START = frozenset(sys.modules)  # what the environment itself loads with Python, such as namespace packages
ALLOWED = {"hasten", "numpy", *sys.stdlib_module_names}


class NothingElse(MetaPathFinder):
    """Refuses every package but NumPy and hasten; hasten's compile side needs others, so it fails too."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        """Raises ImportError for what this process must not have."""
        if fullname.partition(".")[0] not in ALLOWED:
            raise ImportError(f"{fullname} is blocked here")


sys.meta_path.insert(0, NothingElse())
os.environ["PATH"] = ""
os.environ.pop("HASTEN_CC", None)

import numpy as np  # noqa: E402 - after the block, which it must pass

import hasten  # noqa: E402

BEST = 3
BAR = 10


def embed(session: hasten.Session, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """One vector of length 1 for each row of token ids: the mean over its tokens."""
    hidden = session(input_ids=ids, attention_mask=mask, token_type_ids=np.zeros_like(ids))[
        "last_hidden_state"
    ]
    weights = mask[:, :, None].astype(np.float32)
    mean: np.ndarray = (hidden * weights).sum(1) / weights.sum(1)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    return mean


def main(artifact: str, file: str) -> None:
    """Prints the nearest sentences for each query."""
    with np.load(file) as data:
        sentences, queries = data["sentences"], data["queries"]
        ids, mask = data["ids"], data["mask"]
        query_ids, query_mask = data["query_ids"], data["query_mask"]
    start = time.perf_counter()
    session = hasten.open(artifact)
    opened = time.perf_counter()
    vectors = embed(session, ids, mask)
    encoded = time.perf_counter()
    scores = embed(session, query_ids, query_mask) @ vectors.T
    loaded = {name.partition(".")[0] for name in sys.modules.keys() - AT_START} - set(sys.stdlib_module_names)
    packages = sorted(name for name in loaded if not name.startswith("_"))
    print(f"   packages in this process: {', '.join(packages)}; all else is blocked, compilers too")
    print(f"   opened in {(opened - start) * 1e3:.1f} ms; ", end="")
    print(f"{len(sentences)} sentences encoded in {(encoded - opened) * 1e3:.0f} ms")
    for query, row in zip(queries, scores, strict=True):
        print(f'\n   Query: "{query}"')
        for i in np.argsort(-row)[:BEST]:
            filled = round(float(max(row[i], 0)) * BAR)
            print(f"   {row[i]:4.2f} {'#' * filled}{'.' * (BAR - filled)} {sentences[i]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
