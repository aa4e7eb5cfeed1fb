"""What pruning did, as plain values, and the model that it left."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from hasten.errors import OptionError
from hasten.graph.oldest import with_oldest_opset
from hasten.passes.prune.units import LeftAlone

_LARGEST = 2**31 - 2**26  # bytes of weights in one file: a message of protobuf holds 2 GB, the graph included


@dataclass(frozen=True)
class Cut:
    """What one group or layer has lost.

    Attributes:
        name: of the node that makes or shares the features; of a layer, of its last addition.
        unit: "neurons", "heads", "channels", "layers"; "weights" of a product, of which those that are zero
            are gone, or "rows" of a table.
        before: units before.
        after: units that are left.
    """

    name: str
    unit: str
    before: int
    after: int


@dataclass(frozen=True)
class PruneReport:
    """What was removed where, and what was not.

    Attributes:
        criterion: by which units were ranked.
        repair: what was done afterwards.
        target: the share of the arithmetic that was to be left; None where all of it was.
        reached: whether no more than that is left.
        flops_before: floating-point operations of one run at `sizes`.
        flops_after: the same of what is left.
        sizes: the symbolic sizes for which they were counted.
        parameters_before: elements of all weights.
        parameters_after: the same of what is left.
        cuts: each group, whether it lost units or not.
        left_alone: units that could not be removed, with reasons.
        notes: what else the user should know.
    """

    criterion: str
    repair: str
    target: float | None
    reached: bool
    flops_before: int
    flops_after: int
    sizes: Mapping[str, int]
    parameters_before: int
    parameters_after: int
    cuts: tuple[Cut, ...]
    left_alone: tuple[LeftAlone, ...]
    notes: tuple[str, ...]

    @property
    def flops(self) -> float:
        """The share of the arithmetic that is left."""
        return self.flops_after / self.flops_before if self.flops_before else 1.0

    def data(self) -> dict[str, Any]:
        """The report as JSON takes it."""
        return {**asdict(self), "flops": self.flops}

    def __str__(self) -> str:
        """The report in words."""
        aim = "" if self.target is None else f" (target {self.target:.1%})"
        lines = [
            f"{self.flops:.1%} of the FLOPs are left{aim}, "
            f"{self.parameters_after / max(1, self.parameters_before):.1%} of the parameters; "
            f"criterion {self.criterion}, repair {self.repair}"
        ]
        lines += [f"  {c.name}: {c.after} of {c.before} {c.unit}" for c in self.cuts if c.after < c.before]
        for left in self.left_alone:
            lines.append(
                f"  left alone: {left.count} {left.unit} of {left.name}: {'; '.join(left.reasons[:2])}"
            )
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


@dataclass(frozen=True)
class Pruned:
    """A smaller model: plain ONNX, which `hasten.compile` takes like a file.

    Attributes:
        model: the graph.
        report: what was removed.
        folder: the Hugging Face folder that the original came from, whose tokenizer or image processor reads
            raw texts and pictures; None if there is none.
    """

    model: ir.Model
    report: PruneReport
    folder: Path | None = None

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> int:
        """Writes the model as an ONNX file; weights of more than 2 GB go beside it, into `NAME.onnx.data`.

        The file says the oldest opset, from 21 on, in which its operators mean the same.

        Args:
            path: where to.
            overwrite: whether files that are there may be replaced.

        Returns:
            How many bytes were written.

        Raises:
            OptionError: there is a file already, or it cannot be written, or the model reads weights from it.
        """
        target = Path(path)
        beside = target.with_name(f"{target.name}.data")
        model = with_oldest_opset(self.model)
        weights = [v.const_value for v in model.graph.initializers.values()]
        apart = sum(t.nbytes for t in weights if t is not None) > _LARGEST
        for place in (target, beside) if apart else (target,):
            if place.exists() and not overwrite:
                raise OptionError(f"{place} exists: give another name, or overwrite=True")
        read = {Path(t.path).resolve() for t in weights if isinstance(t, ir.ExternalTensor)}
        if apart and beside.resolve() in read:
            raise OptionError(f"{beside} holds weights that this model still reads: give another name")
        try:
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
                made = Path(folder) / target.name
                if apart:
                    ir.save(model.clone(), made, external_data=beside.name)
                    made.with_name(beside.name).replace(beside)
                else:
                    alone = ir.external_data.load_to_model(model.clone())
                    made.write_bytes(ir.to_proto(alone).SerializeToString())
                made.replace(target)
        except OSError as error:
            raise OptionError(
                f"cannot write {target}: {error.strerror or error}; choose another place"
            ) from None
        return target.stat().st_size + (beside.stat().st_size if apart else 0)
