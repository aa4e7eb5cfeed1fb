import logging

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import transformers

from hasten.errors import ModelError, OptionError
from hasten.frontends import load


class Pair(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
        total = self.dropout(self.linear(left)) + right.mean(dim=1, keepdim=True)
        return {"total": total, "parts": torch.relu(total)}


class Fixed(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, 6)


def _shapes(model: ir.Model) -> dict[str | None, str]:
    return {value.name: str(value.shape) for value in (*model.graph.inputs, *model.graph.outputs)}


def _run(model: ir.Model, *arrays: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    names = [value.name for value in model.graph.inputs]
    return session.run(None, dict(zip(names, arrays, strict=True)))


def test_the_first_dimension_is_symbolic_and_the_answers_are_the_modules() -> None:
    module = Pair().train()
    # One row: the tracer would take a batch of 1 for a constant.
    model = load(module, example=(np.zeros((1, 4), np.float32), torch.zeros(1, 5)))
    assert module.training and module.dropout.training
    assert _shapes(model) == {
        "left": "[batch,4]",
        "right": "[batch,5]",
        "total": "[batch,3]",
        "parts": "[batch,3]",
    }
    left, right = torch.randn(7, 4), torch.randn(7, 5)
    with torch.no_grad():
        expected = module.eval()(left, right)
    total, parts = _run(model, left.numpy(), right.numpy())
    np.testing.assert_allclose(total, expected["total"].numpy(), atol=1e-6)
    np.testing.assert_allclose(parts, expected["parts"].numpy(), atol=1e-6)


def test_a_decoder_is_exported_without_its_cache() -> None:
    config = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2)
    module = transformers.GPT2LMHeadModel(config).eval()
    ids = torch.arange(10).reshape(2, 5)
    model = load(module, example={"input_ids": ids})
    assert module.config.use_cache is True
    assert _shapes(model) == {"input_ids": "[batch,5]", "logits": "[batch,5,50]"}
    with torch.no_grad():
        expected = module(ids).logits
    np.testing.assert_allclose(_run(model, ids.numpy())[0], expected.numpy(), atol=1e-5)


def test_a_mixture_of_experts() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = transformers.MixtralConfig(vocab_size=50, num_local_experts=3, **sizes, **heads)
    module = transformers.MixtralForCausalLM(config).eval()
    ids = torch.arange(10).reshape(2, 5)
    model = load(module, example={"input_ids": ids})
    for batch in (1, 3):
        ids = torch.randint(0, 50, (batch, 5))
        with torch.no_grad():
            expected = module(ids).logits
        np.testing.assert_allclose(_run(model, ids.numpy())[0], expected.numpy(), atol=1e-5)


def test_weights_are_the_modules_memory() -> None:
    module = torch.nn.Linear(64, 64, bias=False)
    model = load(module, example=torch.zeros(2, 64))
    weight = module.weight.detach().numpy()
    tensors = [value.const_value for value in model.graph.initializers.values()]
    assert any(tensor is not None and np.shares_memory(tensor.numpy(), weight) for tensor in tensors)


def test_dims_by_name_and_an_example_by_name() -> None:
    example = {"right": torch.zeros(2, 1), "left": torch.zeros(2, 4)}
    model = load(Pair(), example=example, dynamic={"right": {1: "width"}})
    assert {name: shape for name, shape in _shapes(model).items() if name in example} == {
        "left": "[2,4]",
        "right": "[2,width]",
    }


class Scaled(torch.nn.Module):
    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        if scale.ndim > 0:
            raise AssertionError
        return x * scale


def test_arrays_keep_their_axes_and_come_in_any_byte_order() -> None:
    x = np.ones((2, 3), ">f4")
    for scale in (np.float32(2), np.array(2, ">f4")):
        model = load(Scaled(), example={"x": x, "scale": scale})
        assert _shapes(model)["scale"] == "[]"
    assert model.graph.inputs[0].dtype == ir.DataType.FLOAT
    np.testing.assert_array_equal(_run(model, x.astype(np.float32), np.array(3, np.float32))[0], 3 * x)


def test_what_forward_raises_is_the_cause() -> None:
    with pytest.raises(ModelError, match=r"Scaled fails on .*'scale': \[1\]}: AssertionError\.") as caught:
        load(Scaled(), example={"x": np.ones(2), "scale": np.ones(1)})
    assert isinstance(caught.value.__cause__, AssertionError)


def test_a_module_with_fixed_sizes_falls_back_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "hasten"):
        model = load(Fixed(), example=(torch.zeros(3, 4),))
    assert _shapes(model)["x"] == "[3,4]"
    assert "Fixed could not be exported with all sizes symbolic" in caplog.text
    assert "symbolic are: none" in model.metadata_props["hasten.notes"]
    with pytest.raises(ModelError, match=r"PyTorch cannot export Fixed.* always 3"):
        load(Fixed(), example=(torch.zeros(3, 4),), dynamic={"x": {0: "batch"}})


def test_an_exported_program() -> None:
    batch = torch.export.Dim("batch")
    program = torch.export.export(torch.nn.Linear(4, 3), (torch.zeros(2, 4),), dynamic_shapes=({0: batch},))
    model = load(program)
    (source,) = model.graph.inputs
    assert source.shape is not None
    assert not source.shape.is_static()
    x = np.ones((5, 4), np.float32)
    with torch.no_grad():
        expected = program.module()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(_run(model, x)[0], expected, atol=1e-6)
    with pytest.raises(OptionError, match="has been traced already"):
        load(program, example=(torch.zeros(2, 4),))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, OptionError, "A Fixed can only be traced with example inputs"),
        ({"example": (torch.zeros(5),)}, ModelError, r"fails on the example inputs {'x': \[5\]}"),
        ({"example": np.array([["a"]])}, OptionError, r"no tensors of <U1, .* shape \[1, 1\]"),
        ({"example": (torch.zeros(3, 4),), "dynamic": {"y": {0: "n"}}}, OptionError, "no input 'y'"),
        (
            {"example": (torch.zeros(3, 4),), "dynamic": {"x": {2: "n"}}},
            OptionError,
            "has 2 dimensions, so there is no dimension 2",
        ),
        (
            {"example": (torch.zeros(3, 4),), "dynamic": {"x": {0: "a b"}}},
            OptionError,
            "'a b' of input 'x' cannot name a size",
        ),
    ],
)
def test_wrong_options(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load(Fixed(), **options)
