"""`hasten inspect`."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import onnx
from rich.syntax import Syntax

from hasten.cli.console import echo_json, row, size, stdout, table, tensor
from hasten.cli.options import json_option, model_argument
from hasten.cli.sources import Contents, read_contents
from hasten.errors import OptionError
from hasten.runtime.manifest import all_steps


@click.command("inspect", short_help="Show what MODEL was made into.")
@model_argument
@click.option("--graph", is_flag=True, help="The operators of the optimized graph.")
@click.option("--kernels", is_flag=True, help="What each compiled kernel computes.")
@click.option("--c", "kernel", metavar="KERNEL", help="The generated C of a kernel, by number or function.")
@click.option("--memory", is_flag=True, help="The memory plan: which tensors share a place.")
@json_option
def inspect_(
    model: Path, graph: bool, kernels: bool, kernel: str | None, memory: bool, as_json: bool
) -> None:
    """Show what MODEL (or OUT.hasten) was made into.

    Without options: inputs, outputs, parts, what fused and what did not and why, what runs on the host and
    why, and the members of the artifact. A MODEL that is not compiled is compiled in memory first.
    """
    if sum((graph, kernels, kernel is not None, memory)) > 1:
        raise OptionError("give one of --graph, --kernels, --c and --memory")
    contents = read_contents(model)
    if kernel is not None:
        _show_c(contents, kernel, as_json)
    elif graph:
        _show_graph(contents.graph, as_json)
    elif kernels:
        _show_kernels(contents, as_json)
    elif memory:
        _show_memory(contents, as_json)
    elif as_json:
        echo_json({**contents.raw, "members": contents.sizes})
    else:
        _show_summary(contents)


def _show_summary(contents: Contents) -> None:
    console, raw = stdout(), contents.raw
    shown = table("", "name", "type")
    for kind, tensors in (("input", contents.manifest.inputs), ("output", contents.manifest.outputs)):
        for info in tensors:
            row(shown, kind, info.name, tensor(info))
    console.print(shown)
    _heading("Steps")
    _show_steps(raw["steps"], "  ")
    for guard in raw["guards"]:
        click.echo(f"  checked at each run: {guard}")
    for skipped in raw["report"].get("padding", ()):
        masks = ", ".join(skipped["masks"])
        click.echo(
            f"  padding: {skipped['tensors']} tensors are computed only where {masks} shows a position"
        )
    for reason in raw["report"].get("padded", ()):
        click.echo(f"  padding is computed: {reason}")
    passes = raw["report"].get("passes", {})
    if passes:
        _heading(f"Graph: {passes['nodes_before']} nodes, {passes['nodes_after']} after optimization")
        for rule, count in Counter(item["rule"] for item in passes["fused"]).items():
            click.echo(f"  fused    {rule} x {count}")
        for (rule, reason), count in Counter(
            (item["rule"], item["reason"]) for item in passes["declined"]
        ).items():
            click.echo(f"  declined {rule} x {count}: {reason}")
        for name, count in passes["simplified"]:
            click.echo(f"  simplified: {name} x {count}")
    members = table("member", ">size")
    for name, count in contents.sizes.items():
        row(members, name, size(count))
    _heading("Members")
    console.print(members)


def _show_steps(steps: list[dict[str, Any]], margin: str) -> None:
    for step in steps:
        if step["kind"] == "host":
            reason = step.get("reason", "not compiled")
            click.echo(f"{margin}on the host: {', '.join(step['operators'])}: {reason}")
        elif step["kind"] == "foreign":
            click.echo(f"{margin}{step['engine']} {step['version']} runs all of it, {step['precision']}")
        elif "part" in step:
            functions = len(set(step.get("functions", step["kernels"])))
            click.echo(
                f"{margin}part {step['part']}: {len(step['kernels'])} kernels in {functions} functions, "
                f"{len(step.get('memory', ()))} places in memory"
            )
        for body, name in zip(step.get("bodies", ()), _BODIES.get(step["kind"], ()), strict=True):
            click.echo(f"{margin}{name.format(step['operator'])}")
            _show_steps(body["steps"], margin + "  ")


_BODIES = {"branches": ("if {}", "else of {}"), "loop": ("each step of {}",)}


def _heading(text: str) -> None:
    click.echo(f"\n{text}")


def _show_graph(graph: onnx.GraphProto, as_json: bool) -> None:
    values = [*graph.value_info, *graph.output, *graph.input]
    shapes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
    nodes = [
        {
            "operator": f"{node.domain}.{node.op_type}" if node.domain else node.op_type,
            "name": node.name,
            "inputs": list(node.input),
            "outputs": {name: shapes.get(name) for name in node.output if name},
        }
        for node in graph.node
    ]
    if as_json:
        echo_json({"nodes": nodes})
        return
    shown = table(">", "operator", "outputs", "inputs")
    for index, node in enumerate(nodes):
        outputs = [f"{name} {dims or ''}".strip() for name, dims in node["outputs"].items()]
        row(
            shown,
            index,
            node["operator"],
            ", ".join(outputs),
            ", ".join(name or "-" for name in node["inputs"]),
        )
    stdout().print(shown)


def _kernels(contents: Contents) -> Iterator[dict[str, Any]]:
    """Kernels of all parts, numbered through."""
    number = 0
    for step in all_steps(contents.raw["steps"]):
        for function, title in zip(step.get("functions", ()), step.get("kernels", ()), strict=False):
            yield {"number": number, "part": step["part"], "function": function, "computes": title}
            number += 1


def _schedules(contents: Contents) -> dict[int, list[dict[str, Any]]]:
    """For each kernel of a product, by number, its shape and schedule on every target."""
    found: dict[int, list[dict[str, Any]]] = {}
    first = 0
    for step in all_steps(contents.raw["steps"]):
        for target, products in step.get("products", {}).items():
            for item in products:
                found.setdefault(first + item["kernel"], []).append({"target": target, **item})
        first += len(step.get("kernels", ())) if "part" in step else 0
    return found


def _show_kernels(contents: Contents, as_json: bool) -> None:
    schedules = _schedules(contents)
    found = [{**item, "schedules": schedules.get(item["number"], [])} for item in _kernels(contents)]
    if as_json:
        echo_json({"kernels": found})
        return
    shown = table(">number", "function", "computes", "schedule")
    for item in found:
        row(shown, item["number"], item["function"], item["computes"], _schedule_text(item["schedules"]))
    stdout().print(shown)


def _schedule_text(schedules: list[dict[str, Any]]) -> str:
    """Such as "x86-64-v4: tiles of 8 (measured)"; without the target where there is one alone."""
    texts = [f"{s['schedule']}{' (measured)' if s['measured'] else ''}" for s in schedules]
    if len(set(texts)) == 1:
        return texts[0]
    return "; ".join(f"{s['target']}: {text}" for s, text in zip(schedules, texts, strict=True))


def _show_memory(contents: Contents, as_json: bool) -> None:
    slots = [
        {"part": step["part"], "slot": index, **slot}
        for step in all_steps(contents.raw["steps"])
        for index, slot in enumerate(step.get("memory", ()))
    ]
    if as_json:
        echo_json({"slots": slots})
        return
    shown = table(">part", ">slot", "bytes", "tensors, one after the other")
    for slot in slots:
        row(shown, slot["part"], slot["slot"], slot["bytes"], ", ".join(slot["tensors"]))
    stdout().print(shown)


def _show_c(contents: Contents, wanted: str, as_json: bool) -> None:
    known = {str(item["number"]): item["function"] for item in _kernels(contents)}
    name = known.get(wanted, wanted)
    found = {
        member.split("/")[1]: text
        for member, source in contents.texts.items()
        if member.startswith("c/") and (text := cut_function(source.decode(), name)) is not None
    }
    if not found:
        raise OptionError(
            f"there is no kernel {wanted!r}: give a number or a function of `hasten inspect --kernels`"
        )
    if as_json:
        echo_json({"function": name, "c": found})
        return
    for target, text in found.items():
        heading = f"/* {target} */\n" if len(found) > 1 else ""
        if sys.stdout.isatty():
            stdout().print(Syntax(heading + text, "c", background_color="default", word_wrap=True))
        else:
            click.echo(heading + text)


def cut_function(source: str, name: str) -> str | None:
    """The definition of a function in C that was emitted with each body's end at the start of a line."""
    start = re.search(rf"^[A-Za-z_][^\n;={{}}]*\b{re.escape(name)}\([^;{{]*\) \{{$", source, re.M)
    if start is None:
        return None
    end = source.index("\n}", start.end())
    return source[start.start() : end + 2]
