"""What a frontend is: one kind of source, read into one graph."""

from collections.abc import Mapping
from typing import Any, Protocol

import onnx_ir as ir

# By input name, or by position in the order of the model's inputs; tensors or NumPy arrays.
Example = Mapping[str, Any] | tuple[Any, ...]
# For an input's name, which dimensions are symbolic, and how they are called.
Dynamic = Mapping[str, Mapping[int, str]]


class Frontend(Protocol):
    """One kind of source of models.

    A frontend is a module with these two functions. It imports its framework only inside `load`.
    """

    def accepts(self, source: object) -> bool:
        """Return whether `source` is of this kind, without reading more than a folder's names."""

    def load(
        self, source: object, *, example: Example | None = None, dynamic: Dynamic | None = None
    ) -> ir.Model:
        """Read a source into a graph, of any opset.

        Args:
            source: Something that `accepts` accepts.
            example: Inputs to trace a program with, where the kind of source needs that.
            dynamic: Names for dimensions that are symbolic, where the kind of source can tell.

        Returns:
            A model that the caller may change.

        Raises:
            ModelError: The source is missing, unreadable or not a valid model.
            MissingDependencyError: The framework of the source is not installed.
            OptionError: `example` or `dynamic` does not fit the source.
        """
