"""What each verb does when all is well."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import Result
from tests.cli.conftest import classifier_of_texts, text_model

import hasten
from hasten.cli.inspect import cut_function
from hasten.target import TARGETS, runs_here

Invoke = Callable[..., Result]


def expected(model: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    return np.asarray(onnxruntime.InferenceSession(str(model)).run(None, inputs)[0])


def test_help_of_each_verb(invoke: Invoke) -> None:
    page = invoke("--help")
    assert page.exit_code == 0
    for verb in ("compile", "run", "verify", "bench", "profile", "inspect", "doctor", "tune"):
        assert verb in page.stdout
        result = invoke(verb, "--help")
        assert result.exit_code == 0
        assert "Usage: hasten" in result.stdout


def test_compile_shows_its_steps_and_says_what_it_made(invoke: Invoke, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.hasten"
    result = invoke("compile", model, "-o", path, "--threads", "1")
    assert result.exit_code == 0
    assert "reading the model" in result.stderr
    assert str(path) in result.stdout
    assert [child.name for child in tmp_path.iterdir()] == ["m.hasten"]


def test_compile_as_json(invoke: Invoke, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.hasten"
    result = invoke("compile", model, "-o", path, "--json", "--target", "x86-64-v3", "--target", "native")
    assert result.exit_code == 0
    summary = json.loads(result.stdout)
    assert summary["bytes"] == path.stat().st_size
    assert summary["host"] == {}
    assert "x86-64-v3" in summary["targets"]


def test_compile_names_its_output_after_the_model(
    invoke: Invoke, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke("compile", model).exit_code == 0
    assert (tmp_path / "text.hasten").is_file()


def test_run_writes_what_the_model_answers(
    invoke: Invoke, artifact: Path, model: Path, inputs: dict[str, np.ndarray], tmp_path: Path
) -> None:
    np.savez(tmp_path / "x.npz", **inputs)
    result = invoke("run", artifact, "--input", tmp_path / "x.npz", "-o", tmp_path / "y.npz")
    assert result.exit_code == 0, result.stderr
    with np.load(tmp_path / "y.npz") as loaded:
        np.testing.assert_allclose(loaded["scores"], expected(model, inputs), rtol=1e-5, atol=1e-5)


def test_run_with_made_up_inputs_of_a_shape(invoke: Invoke, artifact: Path) -> None:
    result = invoke("run", artifact, "--shape", "input_ids=3x7", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["outputs"]["scores"]["shape"] == [3, 7, 4]


def test_nan_passes_through(
    invoke: Invoke, artifact: Path, inputs: dict[str, np.ndarray], tmp_path: Path
) -> None:
    inputs["attention_mask"][0, 1] = np.nan
    np.savez(tmp_path / "x.npz", **inputs)
    result = invoke("run", artifact, "-i", tmp_path / "x.npz", "-o", tmp_path / "y.npz")
    assert result.exit_code == 0, result.stderr
    with np.load(tmp_path / "y.npz") as loaded:
        nan = np.isnan(loaded["scores"])
    assert nan[0, 1].all()
    assert nan.sum() == 4


def test_an_empty_batch_gives_an_empty_result(invoke: Invoke, artifact: Path, tmp_path: Path) -> None:
    empty = {"input_ids": np.empty((0, 5), np.int64), "attention_mask": np.empty((0, 5), np.float32)}
    np.savez(tmp_path / "x.npz", **empty)
    result = invoke("run", artifact, "-i", tmp_path / "x.npz", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["outputs"]["scores"]["shape"] == [0, 5, 4]


def test_verify_passes(invoke: Invoke, artifact: Path, model: Path) -> None:
    result = invoke("verify", artifact, model)
    assert result.exit_code == 0, result.output
    assert "Passed" in result.stdout
    assert "onnxruntime" in result.stdout


def test_verify_fails_with_1_when_the_answers_differ(
    invoke: Invoke, artifact: Path, model: Path, tmp_path: Path
) -> None:
    changed = onnx.load(model)
    matrix = next(tensor for tensor in changed.graph.initializer if tensor.name == "matrix")
    values = onnx.numpy_helper.to_array(matrix) * np.float32(1.01)
    matrix.CopyFrom(onnx.numpy_helper.from_array(values, "matrix"))
    onnx.save(changed, tmp_path / "changed.onnx")
    result = invoke("verify", artifact, tmp_path / "changed.onnx", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert not found["passed"]
    assert 1e-3 < found["outputs"][0]["relative"] < 1e-1
    assert invoke("verify", artifact, tmp_path / "changed.onnx", "--tolerance", "0.1").exit_code == 0


def test_bench_of_a_model_against_an_engine(invoke: Invoke, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    result = invoke(
        "bench", model, "--against", "onnxruntime,torch", "--rounds", "1", "--threads", "1",
        "--shape", "input_ids=1x16", "--json", path,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "onnxruntime" in result.stdout
    assert "torch: not measured" in result.stdout
    case = json.loads(path.read_text())
    ours, other = case["measurement"]["results"]
    assert [ours["engine"], other["engine"]] == ["hasten", "onnxruntime"]
    assert case["gflop"] == pytest.approx(2 * 16 * 8 * 4 / 1e9)
    assert other["ratio"]["median"] == pytest.approx(other["run_ms"]["median"] / ours["run_ms"]["median"])
    assert case["compile_seconds"] > 0
    assert min(ours["load_ms"], ours["peak_mb"], other["load_ms"], other["peak_mb"]) > 0


def test_bench_of_an_artifact_alone(invoke: Invoke, artifact: Path) -> None:
    result = invoke("bench", artifact, "--rounds", "1", "--json", "-")
    assert result.exit_code == 0, result.stderr
    assert [r["engine"] for r in json.loads(result.stdout)["measurement"]["results"]] == ["hasten"]


def test_bench_compares_with_the_peak_of_what_the_artifact_multiplies(
    invoke: Invoke, model: Path, tmp_path: Path
) -> None:
    artifact, figures = tmp_path / "narrow.hasten", tmp_path / "figures.json"
    assert invoke("compile", model, "-o", artifact, "--precision", "bf16").exit_code == 0
    result = invoke("bench", artifact, "--rounds", "1", "--threads", "1", "--json", figures)
    assert result.exit_code == 0, result.stderr
    case = json.loads(figures.read_text())
    (ours,) = case["measurement"]["results"]
    assert ours["precision"] == "bf16"
    measured = case["measurement"]["beside"][0]
    assert case["peak_precision"] == ("bf16" if "bf16" in measured else "f32")
    assert case["peak_gflops"]["median"] == measured[case["peak_precision"]]
    assert f"of the peak in {case['peak_precision']}" in result.stdout


def test_bench_of_a_model_without_products_prints_no_rate(invoke: Invoke, tmp_path: Path) -> None:
    onnx.save(
        onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["": 21]> g (float[n] x) => (float[n] y) { y = Relu(x) }'
        ),
        tmp_path / "relu.onnx",
    )
    result = invoke("bench", tmp_path / "relu.onnx", "--rounds", "1", "--threads", "1")
    assert result.exit_code == 0, result.stderr
    assert "peak of the machine" in result.stdout
    assert "of the peak" not in result.stdout


def test_bench_names_an_input_that_its_file_lacks(
    refused: Callable[..., str], artifact: Path, inputs: dict[str, np.ndarray], tmp_path: Path
) -> None:
    np.savez(tmp_path / "x.npz", input_ids=inputs["input_ids"])
    message = refused("bench", artifact, "--input", tmp_path / "x.npz", "--rounds", "1")
    assert "missing attention_mask" in message


def test_bfloat16_is_benched_and_read_from_files(invoke: Invoke, tmp_path: Path) -> None:
    model = tmp_path / "double.onnx"
    text = "g (bfloat16[n] x) => (bfloat16[n] y) { y = Add(x, x) }"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> {text}'), model)
    timed = invoke("bench", model, "--rounds", "1", "--threads", "1", "--json", "-")
    assert timed.exit_code == 0, timed.output
    assert json.loads(timed.stdout)["measurement"]["results"][0]["engine"] == "hasten"
    np.savez(tmp_path / "x.npz", x=np.array([1, -2, 3]).astype(ml_dtypes.bfloat16))
    ran = invoke("run", model, "--input", tmp_path / "x.npz", "-o", tmp_path / "y.npz")
    assert ran.exit_code == 0, ran.output
    with np.load(tmp_path / "y.npz") as found:
        assert found["y"].view(ml_dtypes.bfloat16).astype(float).tolist() == [2, -4, 6]


def test_inspect_tells_what_became_of_the_model(invoke: Invoke, artifact: Path) -> None:
    summary = invoke("inspect", artifact).stdout
    for word in ("input_ids", "int64[batch, sequence]", "part 0", "weights.bin"):
        assert word in summary
    assert "MatMul" in invoke("inspect", artifact, "--graph").stdout
    assert "project" in invoke("inspect", artifact, "--kernels").stdout
    assert invoke("inspect", artifact, "--memory").exit_code == 0
    kernels = json.loads(invoke("inspect", artifact, "--kernels", "--json").stdout)["kernels"]
    for kernel in kernels:
        for wanted in (kernel["number"], kernel["function"]):
            text = invoke("inspect", artifact, "--c", str(wanted)).stdout
            assert f" {kernel['function']}(" in text
            assert text.rstrip().endswith("}")
            assert text.count("{") == text.count("}")


def test_inspect_says_why_padding_is_computed(invoke: Invoke, tmp_path: Path) -> None:
    text = (
        "(float[b, s, 8] x, float[b, 1, s, s] mask) => (float[b, s, 8] z) "
        "{ y = Attention<q_num_heads = 2, kv_num_heads = 2>(x, x, x, mask) z = Relu(y) }"
    )
    onnx.save(
        onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 24]> g {text}'), tmp_path / "m.onnx"
    )
    (line,) = [w for w in invoke("inspect", tmp_path / "m.onnx").stdout.splitlines() if "padding" in w]
    assert line.startswith("  padding is computed: 1 attention adds a mask that depends on the query")
    assert line.endswith("a boolean mask of the keys would tell")


def test_inspect_of_a_model_that_is_not_compiled(invoke: Invoke, model: Path, artifact: Path) -> None:
    from_model = json.loads(invoke("inspect", model, "--json").stdout)
    from_artifact = json.loads(invoke("inspect", artifact, "--json").stdout)
    assert from_model == from_artifact | {"members": from_model["members"]}
    assert from_model["members"] == from_artifact["members"]


def test_cut_function_takes_the_definition_and_not_a_call() -> None:
    source = "void f(int a);\n\nvoid g(void) {\n    f(1);\n}\n\nvoid f(int a) {\n    if (a) {\n    }\n}\n"
    assert cut_function(source, "f") == "void f(int a) {\n    if (a) {\n    }\n}"
    assert cut_function(source, "h") is None


def test_doctor(invoke: Invoke, cache: Path) -> None:
    found = json.loads(invoke("doctor", "--json").stdout)
    assert found["cores"] >= 1
    assert found["cache"] == str(cache)
    assert found["compiler"]
    assert found["targets"][found["native"]]["runs"]
    assert found["packages"]["numpy"] == np.__version__
    page = invoke("doctor")
    assert page.exit_code == 0
    assert found["native"] in page.stdout


def test_the_command_in_a_process_of_its_own(artifact: Path) -> None:
    command = [sys.executable, "-m", "hasten.cli.main"]
    done = subprocess.run([*command, "run", artifact], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "scores" in done.stdout
    wrong = subprocess.run([*command, "run", "no.hasten"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1
    assert "no.hasten" in wrong.stderr


def test_a_missing_package_of_the_command_line_is_named(tmp_path: Path) -> None:
    code = (
        "import importlib.util as u, sys; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'click' else find(name, *a)\n"
        "from hasten.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "click" in done.stderr
    assert "pip install" in done.stderr


def test_a_hugging_face_folder_is_verified_by_pytorch(invoke: Invoke, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the extra huggingface is not installed")
    transformers = pytest.importorskip("transformers", reason="the extra huggingface is not installed")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=64,
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "tiny")
    path = tmp_path / "tiny.hasten"
    result = invoke("compile", tmp_path / "tiny", "-o", path)
    assert result.exit_code == 0, result.stderr
    assert "computed only where attention_mask shows" in invoke("inspect", path).stdout
    result = invoke("verify", path, tmp_path / "tiny", "--shape", "input_ids=2x9", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["engine"] == "torch"
    assert [item["output"] for item in found["outputs"]] == ["logits"]
    assert found["outputs"][0]["range"] > 0


def test_bf16_for_a_processor_without_it_is_said(invoke: Invoke, model: Path, tmp_path: Path) -> None:
    plain = next(t.name for t in TARGETS if not t.factors and runs_here(t))
    options = ("compile", model, "-o", tmp_path / "m.hasten", "--target", plain)
    told = invoke(*options, "--precision", "bf16")
    assert told.exit_code == 0, told.stderr
    said = f"bf16: {plain} has no fast instructions for it"
    assert f"hasten: warning: {said}" in told.stderr
    for precision, count in (("bf16", 1), ("f32", 0)):
        told = invoke(*options, "--precision", precision, "--json")
        warnings = json.loads(told.stdout)["warnings"]
        assert [text.startswith(said) for text in warnings] == [True] * count


def test_compiling_to_int8(
    invoke: Invoke, model: Path, inputs: dict[str, np.ndarray], tmp_path: Path
) -> None:
    np.savez(tmp_path / "data.npz", **inputs)
    path = tmp_path / "small.hasten"
    result = invoke("compile", model, "-o", path, "--precision", "int8", "--data", tmp_path / "data.npz")
    assert result.exit_code == 0, result.stderr
    with hasten.open(path) as session:
        assert session.report["quantization"]["layers"] == ["project"]


def test_how_to_quantize_is_chosen_by_options(
    invoke: Invoke, model: Path, inputs: dict[str, np.ndarray], tmp_path: Path
) -> None:
    np.savez(tmp_path / "data.npz", **inputs)
    path = tmp_path / "small.hasten"
    chosen = ("--ranges", "percentile", "--rounding", "gptq", "--smoothing", "off", "--rest", "bf16")
    data = ("--precision", "int8", "--data", tmp_path / "data.npz")
    result = invoke("compile", model, "-o", path, *data, *chosen)
    assert result.exit_code == 0, result.stderr
    with hasten.open(path) as session:
        told = session.report["quantization"]
        assert [told[n] for n in ("ranges", "rounding", "smoothing", "rest")] == [
            "percentile",
            "gptq",
            None,
            "bf16",
        ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--rest", "bf16"), "--rest is for --precision int8 or int8-weights or int4-weights, and that"),
        (("--group", "64", "--precision", "int8"), "--group is for --precision int8-weights or int4-weights"),
        (("--ranges", "mse", "--precision", "int4-weights"), "--ranges is for --precision int8, and"),
        (("--ranges", "mse", "--precision", "int8"), "--ranges is about what the model sees: give examples"),
        (("--rounding", "gptq", "--precision", "int8-weights"), "give examples with --data"),
        (("--smoothing", "much", "--precision", "int8", "--data", "d.npz"), "a number from 0 to 1, or off"),
        (("--smoothing", "1.5", "--precision", "int8", "--data", "d.npz"), "smoothing=1.5: give a number"),
    ],
)
def test_options_that_say_nothing(
    refused: Callable[..., str], model: Path, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    assert said in refused("compile", model, "-o", tmp_path / "m.hasten", *options)


@pytest.mark.parametrize("arguments", [(), ("tune",)])
def test_a_command_alone_shows_its_help(invoke: Invoke, arguments: tuple[str, ...]) -> None:
    result = invoke(*arguments)
    assert len(result.output.splitlines()) > 5
    assert "Usage: hasten" in result.output and "error" not in result.output


def test_maps_are_shown_and_not_written(invoke: Invoke, tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["": 21, "ai.onnx.ml": 3]>
        g (float[n, 2] x) => (seq(map(int64, float)) y)
        { y = ai.onnx.ml.ZipMap<classlabels_int64s = [3, 5]>(x) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "map.onnx")
    assert invoke("compile", tmp_path / "map.onnx", "-o", tmp_path / "map.hasten").exit_code == 0
    np.savez(tmp_path / "x.npz", x=np.ones((2, 2), np.float32))
    run = ("run", tmp_path / "map.hasten", "--input", tmp_path / "x.npz")
    shown = invoke(*run)
    assert shown.exit_code == 0, shown.stderr
    assert "object" in shown.stdout
    written = invoke(*run, "-o", tmp_path / "y.npz")
    assert written.exit_code == 2 and "leave -o out" in written.stderr


def test_texts_are_verified_and_timed_and_maps_are_left_out(invoke: Invoke, tmp_path: Path) -> None:
    for name, classes in (("model", ("no", "yes")), ("other", ("no", "never"))):
        onnx.save(classifier_of_texts(*classes), tmp_path / f"{name}.onnx")
    model, artifact = tmp_path / "model.onnx", tmp_path / "model.hasten"
    assert invoke("compile", model, "-o", artifact).exit_code == 0
    cities = np.array([["oslo"], ["rome"], ["rome"]])
    np.savez(tmp_path / "x.npz", city=cities, x=np.array([[0, 1], [1, 2], [3, 0]], np.float32))
    for inputs in ((), ("--input", tmp_path / "x.npz")):
        passed = invoke("verify", artifact, model, *inputs)
        assert passed.exit_code == 0, passed.output
        assert "Not compared: p (a map or sequence: export arrays, skl2onnx: zipmap=False)" in passed.stdout
        assert "onnxruntime" in passed.stdout
    found = json.loads(invoke("verify", artifact, model, "--json").stdout)
    assert [output["output"] for output in found["outputs"]] == ["label", "scores"]
    assert found["not_compared"] == ["p"]
    other = invoke("verify", artifact, tmp_path / "other.onnx", "--input", tmp_path / "x.npz", "--json")
    assert other.exit_code == 1, other.output
    assert json.loads(other.stdout)["outputs"][0]["absolute"] is None  # infinity
    timed = invoke("bench", model, "--rounds", "1", "--threads", "1", "--json", "-")
    assert timed.exit_code == 0, timed.output
    results = json.loads(timed.stdout)["measurement"]["results"]
    assert [result["engine"] for result in results] == ["hasten", "onnxruntime"]


def test_padding_that_inputs_do_not_tell_is_not_compared(invoke: Invoke, tmp_path: Path) -> None:
    """Which positions lengths hide is not known from them alone; a mean over what they show is compared."""
    y, mean = "float[b, 9, 8] y", "float[b, 1, 8] mean"
    pool = "f = Cast<to = 1>(shown) u = Unsqueeze(f, deep) t = Mul(y, u) mean = ReduceMean(t, last)"
    weights = {"w": np.eye(8, dtype=np.float32)[::-1], "places": np.arange(9), "last": np.array([1])}
    weights |= {"middle": np.array([1, 2]), "deep": np.array([2])}
    for name, outputs, nodes in (("both", f"{y}, {mean}", pool), ("one", y, "")):
        model = onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["": 23]> g
            (float[b, 9, 8] x, int64[b] lengths) => ({outputs}) {{
            n = Unsqueeze(lengths, last) shown = Less(places, n) mask = Unsqueeze(shown, middle)
            q = MatMul(x, w) k = MatMul(q, w) v = MatMul(k, w)
            a = Attention<q_num_heads = 2, kv_num_heads = 2>(q, k, v, mask) y = MatMul(a, w) {nodes} }}""")
        for constant, array in weights.items():
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, constant))
        onnx.save(model, tmp_path / f"{name}.onnx")
        assert invoke("compile", tmp_path / f"{name}.onnx", "-o", tmp_path / f"{name}.hasten").exit_code == 0
    x = np.random.default_rng(0).standard_normal((3, 9, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x, lengths=np.array([9, 2, 5]))

    def verified(name: str) -> Result:
        files = (tmp_path / f"{name}.hasten", tmp_path / f"{name}.onnx")
        return invoke("verify", *files, "--input", tmp_path / "x.npz")

    found = verified("both")
    assert found.exit_code == 0, found.output
    assert "Not compared: y (0 at the padding that lengths hides, in a way" in found.stdout
    assert "mean" in found.stdout
    refused = verified("one")
    assert refused.exit_code == 2
    assert "compile with --padding compute" in refused.stderr
    np.savez(tmp_path / "x.npz", x=x, lengths=np.array([9, 9, 9]))  # hide nothing
    found = verified("one")
    assert found.exit_code == 0, found.output
    assert "Not compared" not in found.stdout


def test_maps_alone_cannot_be_verified(invoke: Invoke, tmp_path: Path) -> None:
    model = classifier_of_texts("no", "yes")
    del model.graph.output[2], model.graph.output[0]
    onnx.save(model, tmp_path / "maps.onnx")
    assert invoke("compile", tmp_path / "maps.onnx", "-o", tmp_path / "maps.hasten").exit_code == 0
    refused = invoke("verify", tmp_path / "maps.hasten", tmp_path / "maps.onnx")
    assert refused.exit_code == 2
    assert "has no output that can be compared: p (a map or sequence: export arrays" in refused.stderr


def test_json_has_no_infinity(invoke: Invoke, artifact: Path, tmp_path: Path) -> None:
    """Answers of another shape differ without bound."""
    onnx.save(text_model(scale=float("nan")), tmp_path / "nan.onnx")
    result = invoke("verify", artifact, tmp_path / "nan.onnx", "--json")
    assert result.exit_code == 1
    assert not {"Infinity", "NaN"} & set(result.stdout.replace(",", " ").split())
    json.loads(result.stdout, parse_constant=pytest.fail)
