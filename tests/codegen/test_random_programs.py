"""Random small graphs: fusion, layouts, memory and emission together, against the definition."""

import numpy as np
import pytest
from tests.codegen.engines import Interpreted, compile_programs
from tests.codegen.graphs import agree, program

from hasten.loops.program import Program
from hasten.target import Target, native, runs_here

PROGRAMS = 60
N, M = "n", "m"
UNARY = ["Relu", "Neg", "Abs", "Exp", "Tanh", "Sigmoid", "Erf", "Softplus", "Identity", "HardSwish", "Sin"]
BINARY = ["Add", "Sub", "Mul", "Max", "Min"]


class Builder:
    """Grows a graph node by node; every tensor is float32 with values around 1."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[str] = []
        self.constants: dict[str, np.ndarray] = {}
        self.shapes: dict[str, tuple[int | str, ...]] = {}
        self.inputs: list[str] = []

    def pick(self, options):
        return options[int(self.rng.integers(len(options)))]

    def input(self, shape) -> None:
        name = f"x{len(self.inputs)}"
        self.inputs.append(name)
        self.shapes[name] = shape

    def constant(self, array) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = array
        return name

    def floats(self, *shape) -> str:
        return self.constant(self.rng.standard_normal(shape).astype(np.float32) / 2)

    def add(self, call: str, shape) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(f"{name} = {call}")
        self.shapes[name] = shape
        return name

    def source(self) -> str:
        """A tensor, rather a late one, so that graphs are deep."""
        names = list(self.shapes)
        return names[-1 - min(int(self.rng.geometric(0.5)) - 1, len(names) - 1)]

    def grow(self) -> None:
        x = self.source()
        shape = self.shapes[x]
        step = self.pick([self.unary, self.binary, self.binary, self.move, self.reduce, self.normalize])
        if len(shape) >= 2 and isinstance(shape[-1], int) and self.rng.random() < 0.25:
            step = self.product
        step(x, shape)

    def unary(self, x, shape) -> None:
        # Bounded, so that chains of exponentials stay finite.
        bounded = self.add(f"Tanh({x})", shape)
        self.add(f"{self.pick(UNARY)}({bounded})", shape)

    def binary(self, x, shape) -> None:
        same = [name for name, s in self.shapes.items() if s == shape]
        kind = self.rng.random()
        if kind < 0.6 or not shape or not isinstance(shape[-1], int):
            other = self.pick(same)
        elif kind < 0.8:
            other = self.floats(shape[-1])
        else:
            other = self.floats(1)
        self.add(f"{self.pick(BINARY)}({', '.join([x, other] if kind < 0.9 else [other, x])})", shape)

    def move(self, x, shape) -> None:
        rank = len(shape)
        kind = int(self.rng.integers(5))
        if kind == 0 and rank >= 2:
            order = [int(i) for i in self.rng.permutation(rank)]
            self.add(f"Transpose<perm = {order}>({x})", tuple(shape[i] for i in order))
        elif kind == 1 and rank >= 1:
            axis = int(self.rng.integers(rank))
            other = self.pick([n for n, s in self.shapes.items() if s == shape])
            last = shape[axis]
            if isinstance(last, int):
                joined = (*shape[:axis], 2 * last, *shape[axis + 1 :])
                self.add(f"Concat<axis = {axis}>({x}, {other})", joined)
        elif kind == 2 and rank >= 2 and all(isinstance(n, int) for n in shape[-2:]):
            flat = self.constant(np.array([*([0] * (rank - 2)), shape[-2] * shape[-1]]))
            self.add(f"Reshape({x}, {flat})", (*shape[:-2], shape[-2] * shape[-1]))
        elif kind == 3 and rank >= 1 and isinstance(shape[-1], int) and shape[-1] >= 4:
            low, high, axes = (self.constant(np.array([v])) for v in (1, shape[-1] - 1, rank - 1))
            self.add(f"Slice({x}, {low}, {high}, {axes})", (*shape[:-1], shape[-1] - 2))
        elif kind == 4 and rank >= 1:
            pads = np.zeros(2 * rank, np.int64)
            pads[rank - 1] = 2
            if isinstance(shape[-1], int):
                self.add(f"Pad({x}, {self.constant(pads)})", (*shape[:-1], shape[-1] + 2))

    def reduce(self, x, shape) -> None:
        if not shape:
            return
        axis = int(self.rng.integers(len(shape)))
        keep = int(self.rng.integers(2))
        left = (*shape[:axis], *((1,) if keep else ()), *shape[axis + 1 :])
        op = self.pick(["ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum"])
        total = self.add(f"{op}<keepdims = {keep}>({x}, {self.constant(np.array([axis]))})", left)
        if op == "ReduceSum":
            total = self.add(f"Tanh({total})", left)
        if keep:
            self.add(f"Sub({x}, {total})", shape)

    def normalize(self, x, shape) -> None:
        if not shape:
            return
        last = shape[-1]
        if isinstance(last, int) and self.rng.random() < 0.5:
            self.add(f"LayerNormalization({x}, {self.floats(last)}, {self.floats(last)})", shape)
        else:
            self.add(f"Softmax<axis = {int(self.rng.integers(len(shape)))}>({x})", shape)

    def product(self, x, shape) -> None:
        columns = int(self.rng.integers(1, 40))
        self.add(f"MatMul({x}, {self.floats(shape[-1], columns)})", (*shape[:-1], columns))

    def program(self) -> Program:
        results = [f"t{len(self.nodes) - 1}"]
        made = [n for n in self.shapes if n not in self.inputs and n not in results]
        results += [n for n in made if self.rng.random() < 0.15]

        def declared(names):
            return ", ".join(f"float[{', '.join(map(str, self.shapes[n]))}] {n}" for n in names)

        text = f"({declared(self.inputs)}) => ({declared(results)}) {{ {' '.join(self.nodes)} }}"
        return program(text, self.constants)


def random_program(seed: int) -> Program:
    b = Builder(seed)
    shapes = [(N, 7), (N, 3, 16), (M, N, 5), (2, 3, N, 4), (N, M), (M, 33), (N, 1, 8)]
    shape = b.pick(shapes)
    for _ in range(int(b.rng.integers(1, 3))):
        b.input(shape)
    b.input(b.pick(shapes))
    while len(b.nodes) < int(b.rng.integers(4, 14)):
        b.grow()
    return b.program()


@pytest.fixture(scope="module")
def programs():
    return [random_program(seed) for seed in range(PROGRAMS)]


def random_feeds(p: Program, n: int, m: int, seed: int):
    rng = np.random.default_rng(seed)
    feeds = {}
    for name, info in p.inputs.items():
        shape = [{"n": n, "m": m}[e.name] if hasattr(e, "name") else int(e.value) for e in info.shape]
        feeds[name] = rng.standard_normal(shape).astype(np.float32)
    return feeds


@pytest.mark.parametrize("name", ["x86-64-v3", "native"])
def test_compiled(programs, name):
    target = Target.named(name)
    if not runs_here(target):
        pytest.skip(f"this machine does not run {name}")
    if name != "native" and target == native():
        pytest.skip(f"native is {name}, which is tested as such")
    for seed, engine in enumerate(compile_programs(programs, target, parallel=True)):
        for n, m in ((1, 1), (5, 19), (32, 3), (0, 2), (70, 1)):
            # Softmax and LayerNormalization of sums amplify rounding.
            agree(engine, random_feeds(engine.program, n, m, seed), (1, 2, 3), tolerance=5e-5)


@pytest.mark.parametrize("name", ["x86-64-v4", "aarch64"])
def test_interpreted(programs, name):
    for seed, p in enumerate(programs[::6]):
        agree(Interpreted.of(p, Target.named(name)), random_feeds(p, 5, 3, seed), (2,), tolerance=5e-5)


def test_graphs_are_various(programs):
    sizes = {len(p.definitions) for p in programs}
    assert len(sizes) > 5
