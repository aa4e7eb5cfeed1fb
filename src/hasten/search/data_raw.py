"""Raw texts and pictures to a model's inputs, through the tokenizer or image processor in its folder."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hasten.errors import DataError, MissingDependencyError
from hasten.runtime.manifest import TensorInfo
from hasten.search.data_files import PICTURES

_PAIRS = (
    ("text", "text_pair"), ("sentence1", "sentence2"), ("text_a", "text_b"), ("premise", "hypothesis"),
    ("question", "sentence"), ("question", "context"), ("question", "passage"), ("question", "answer"),
    ("question1", "question2"),
)  # fmt: skip
_TEXTS = ("text", "sentence", "sentence1", "text_a", "premise", "question")
_IMAGES = ("image", "img", "picture")
LABELS = ("labels", "label")
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "vocab.txt", "vocab.json", "spiece.model")
_UNSET = 10**6  # a tokenizer's length that is as large means that none was set


class Raw:
    """Makes inputs of raw items; loads the tokenizer or image processor when the first comes.

    Args:
        folder: of the model; None if it has none.
        inputs: what the model takes.
    """

    def __init__(self, folder: Path | None, inputs: Sequence[TensorInfo]) -> None:
        self._folder = folder
        self._inputs = tuple(inputs)
        self._tokenizer: Any = None
        self._processor: Any = None
        self._length = 0
        self._has_processor = _has(folder, _PROCESSOR_FILES)
        self._has_tokenizer = _has(folder, _TOKENIZER_FILES)
        self.notes: list[str] = []

    def knows(self, item: object) -> bool:
        """Whether an item is a text, a pair of texts, a picture, or a mapping of them.

        Nothing is for a model that takes texts themselves: there they are the arrays.
        """
        if any(info.dtype == "object" for info in self._inputs):
            return False
        if isinstance(item, Mapping):
            known = any(info.name in item for info in self._inputs)
            return not known and bool(self._columns(item))
        if isinstance(item, tuple | list):
            return all(isinstance(part, str) for part in item) and len(item) == 2 and self._is_text(item[0])
        return isinstance(item, str | os.PathLike) or _is_picture(item)

    def samples(self, item: Any) -> Iterator[Any]:
        """The samples of a batch of raw texts or pictures; of anything else, itself.

        Such a batch is a mapping of columns, which may be in a pair with the labels, or a pair of a list of
        texts (or paths of pictures) and an array of as many labels: what a `DataLoader` makes of samples.

        Raises:
            DataError: the columns have different lengths.
        """
        batch = item
        if isinstance(item, tuple | list) and len(item) == 2:
            first, second = item
            if isinstance(first, Mapping):
                batch = {"label": second, **first}
            elif are_texts(first) and _is_column(second) and len(first) == len(second):
                batch = {"text" if self._is_text(first[0]) else "image": first, "label": second}
        if not isinstance(batch, Mapping) or not self.knows(batch):
            yield item
            return
        columns = self._columns(batch)
        if not any(_is_column(batch[name]) for name in columns):
            yield item
            return
        columns += tuple(name for name in LABELS if batch.get(name) is not None)
        lengths = {name: len(batch[name]) if _is_column(batch[name]) else None for name in columns}
        if len(set(lengths.values())) > 1:
            said = ", ".join(
                f"{name} {type(batch[name]).__name__ if length is None else length}"
                for name, length in lengths.items()
            )
            raise DataError(f"the columns of a batch have different lengths: {said}")
        for row in zip(*(batch[name] for name in columns), strict=True):
            yield {**batch, **dict(zip(columns, row, strict=True))}

    def arrays(self, item: Any, where: str) -> Mapping[str, object]:
        """The inputs of an item that `knows` accepts, and the columns that they are not made of.

        Args:
            item: one sample.
            where: it is, for messages.

        Raises:
            DataError: the folder has no tokenizer or image processor, a text is missing, or a picture cannot
                be read.
            MissingDependencyError: transformers or Pillow is not installed.
        """
        if isinstance(item, Mapping):
            columns = self._columns(item)
            values = tuple(item[name] for name in columns)
            made = self._of_picture(*values) if columns[0] in _IMAGES else self._of_texts(values, where)
            return {name: value for name, value in item.items() if name not in columns} | dict(made)
        if isinstance(item, tuple | list):
            return self._of_texts(item, where)
        if isinstance(item, str) and self._is_text(item):
            return self._of_texts((item,), where)
        return self._of_picture(item)

    def _columns(self, item: Mapping[str, object]) -> tuple[str, ...]:
        """Which columns are the text, the pair of texts or the picture; none if there are none."""
        texts = (*_PAIRS, *((name,) for name in _TEXTS))
        images = tuple((name,) for name in _IMAGES)
        only_pictures = self._has_processor and not self._has_tokenizer
        known = (*images, *texts) if only_pictures else (*texts, *images)
        return next((names for names in known if all(name in item for name in names)), ())

    def _is_text(self, given: str) -> bool:
        """Whether a string is a text, not the path of a picture: by what the model has, or how it ends."""
        if self._has_processor != self._has_tokenizer:
            return self._has_tokenizer
        return Path(given).suffix.lower() not in PICTURES

    def _of_texts(self, texts: Sequence[object], where: str) -> Mapping[str, object]:
        """The inputs of a text, or of a pair of which the second may be None."""
        for place, text in enumerate(texts):
            if not isinstance(text, str) and not (place and text is None):
                given = "missing" if text is None else f"of type {type(text).__name__}"
                which = ("", "second ")[place]
                raise DataError(f"the {which}text of {where} is {given}: give a string, or leave it out")
        if self._tokenizer is None:
            self._tokenizer = self._load("AutoTokenizer", "tokenizer", "raw texts")
            self._length = self._longest()
        fixed = {
            info.shape[1] for info in self._inputs if len(info.shape) == 2 and isinstance(info.shape[1], int)
        }
        length = min([self._length, *fixed])
        encoded = self._tokenizer(
            *texts,
            truncation=True,
            max_length=length,
            padding="max_length" if fixed else False,
            return_tensors="np",
        )
        return {info.name: encoded[info.name] for info in self._inputs if info.name in encoded}

    def _of_picture(self, picture: Any) -> Mapping[str, object]:
        if self._processor is None:
            self._processor = self._load("AutoImageProcessor", "image processor", "pictures")
        made = self._processor(images=_opened(picture), return_tensors="np")
        if len(self._inputs) == 1 and len(made) == 1:
            return {self._inputs[0].name: next(iter(made.values()))}
        return dict(made)

    def _load(self, loader: str, what: str, form: str) -> Any:
        if self._folder is None or not self._folder.is_dir():
            raise DataError(
                f"the data are {form}, and the model does not come with a {what}: give arrays by input name "
                f"({', '.join(map(str, self._inputs))}), or the model as a Hugging Face folder"
            )
        try:
            import transformers
        except ImportError:
            raise MissingDependencyError(
                f"{form} need transformers, which is not installed: pip install 'hasten[huggingface]'"
            ) from None
        try:
            made = getattr(transformers, loader).from_pretrained(self._folder, local_files_only=True)
        except (OSError, ValueError, ImportError) as error:
            raise DataError(
                f"the data are {form}, and the {what} in {self._folder} cannot be loaded: "
                f"{str(error).splitlines()[0]}"
            ) from None
        self.notes.append(f"{form} through the {what} of the model ({type(made).__name__})")
        return made

    def _longest(self) -> int:
        """Tokens that the model takes, at most."""
        if self._tokenizer.model_max_length < _UNSET:
            return int(self._tokenizer.model_max_length)
        assert self._folder is not None
        config = self._folder / "config.json"
        positions = json.loads(config.read_text()).get("max_position_embeddings") if config.exists() else None
        # Models of RoBERTa's family number positions from 2.
        return 512 if positions is None else max(1, int(positions) - 2)


def are_texts(value: object) -> bool:
    """Whether it is a list or tuple of strings, one at least."""
    return isinstance(value, tuple | list) and bool(value) and all(isinstance(text, str) for text in value)


def _is_column(value: Any) -> bool:
    """Whether it has a value for each sample: a list, an array or a tensor, not a text or picture."""
    sequence = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    return sequence and not isinstance(value, str | bytes | Mapping) and getattr(value, "shape", None) != ()


def _has(folder: Path | None, files: Sequence[str]) -> bool:
    return folder is not None and any((folder / name).is_file() for name in files)


def _is_picture(item: object) -> bool:
    return hasattr(item, "convert") and hasattr(item, "getbands")


def _opened(picture: Any) -> Any:
    """A PIL image in colour, of an image, a path, or what `datasets` stores: a mapping with bytes."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise MissingDependencyError(
            "pictures need Pillow, which is not installed: pip install pillow"
        ) from None
    if isinstance(picture, Mapping):
        picture = io.BytesIO(picture["bytes"]) if picture.get("bytes") is not None else picture.get("path")
    damaged = (OSError, UnidentifiedImageError, Image.DecompressionBombError, zlib.error, struct.error)
    try:
        if _is_picture(picture):
            return picture.convert("RGB")
        with Image.open(picture) as opened:
            return opened.convert("RGB")
    except (*damaged, SyntaxError, ValueError, EOFError, AttributeError, TypeError) as error:
        raise DataError(f"picture {picture} cannot be read: {error}") from None
