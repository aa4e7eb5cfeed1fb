"""Inputs whose shapes contradict each other: an answer or an error of ours; nothing behind them is read."""

import numpy as np
from tests import processes
from tests.onnx_suite.suite import load_cases
from tests.runtime import unequal

ONCE_AT_FAULT = (
    *("batchnorm_epsilon", "compress_0", "dequantizelinear_blocked"),
    *("gemm_default_vector_bias", "image_decoder_decode_png_rgb", "instancenorm_epsilon"),
    *("layer_normalization_default_axis", "onehot_without_axis", "roialign_mode_max", "rotary_embedding"),
)


def test_what_was_read_behind_its_end_once():
    cases = [c for c in load_cases() if c.kind == "node" and c.name.removeprefix("test_") in ONCE_AT_FAULT]
    assert len(cases) == len(ONCE_AT_FAULT)
    found = dict(
        zip((c.name for c in cases), processes.run(unequal.work, cases, unequal.LIMITS), strict=True)
    )
    assert all(f is not None and not f.problems for f in found.values()), found
    assert sum(f.answered for f in found.values()) and sum(f.refused for f in found.values())


def _beyond(items):
    for offset in items:
        array = unequal.fenced(np.arange(5, dtype=np.float32))
        yield float(np.lib.stride_tricks.as_strided(array[4:], (1 + offset,))[offset])


def test_the_fence_ends_a_process():
    assert processes.run(_beyond, [0, 1], unequal.LIMITS) == [4.0, None]
