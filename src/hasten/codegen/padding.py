"""Leaves out padding: what is computed for each token of a padded batch is computed for needed tokens only.

In a batch of sequences padded to one length S a mask [B, S] says which positions are tokens. Attention gives
hidden keys no weight, so that nothing at a hidden position has an effect on what stands elsewhere, if all
else is computed position by position. Then a tensor [B, S, ...] may be kept *packed*, as [T, ...]: T tokens,
entry by entry, in the order of their positions.

Needed are the positions that some query may see, and whatever else is read:

- a constant position (the first token of a pooler), which is needed in every entry;
- where an element is multiplied by a factor of (entry, position), as in a mean over the tokens, positions
  whose factor is not zero; elsewhere the product is zero, whatever the element (infinity and NaN aside);
- where an element is chosen by a condition of (entry, position), positions where it is; elsewhere the
  result is the other choice, which must not depend on packed tensors;
- where masks add a low number instead of leaving keys out, all positions of an entry that has no key without
  one: its attention weighs hidden keys as it weighs others, and so depends on each of them.

More positions than necessary may be needed: attention still applies its masks. An element that is read at
other positions than these (a mean without a mask) has to be computed everywhere, and so does what it is
computed from; in the end nothing may be left to pack. Outputs keep their shape: hidden positions are 0.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from hasten.codegen.padding_mask import SeenKeys, hides_by_query, hiding_value, seen_keys
from hasten.codegen.padding_rewrite import (
    Axes,
    Rewrite,
    Tokens,
    sources,
    unused_name,
)
from hasten.codegen.padding_sequence import Place, Sequences
from hasten.loops.descriptions import Attention, Gemm
from hasten.loops.dtypes import INDEX
from hasten.loops.expr import Expr, Var
from hasten.loops.program import Definition, Program


@dataclass(frozen=True)
class Skipped:
    """What was done to a program.

    Attributes:
        masks: the inputs that tell which positions are needed.
        hidden: the value of the only such input where it hides a position; None if it is not so simple.
        tensors: the number of tensors that are computed for needed positions only.
        outputs: those that are 0 at hidden positions: which of their dimensions are entry and position.
    """

    masks: tuple[str, ...]
    hidden: int | None
    tensors: int
    outputs: Mapping[str, Axes]


def skip_padding(program: Program, whole: Collection[str] = ()) -> tuple[Program, Skipped | None]:
    """A program that computes the same at needed positions, and nothing at others.

    Args:
        program: with attentions whose masks depend on (entry, key).
        whole: outputs that something else reads, and might read anywhere.

    Returns:
        The program to run, and what was done; None where padding cannot be told or left out.
    """
    found = _attempt(program, whole)
    if found is None or not found.is_worth_it:
        return program, None
    rewrite, packed = found.rewrite, found.rewrite.packed
    unpacked = [rewrite.unpacked(name) for name in program.outputs if name in packed]
    added = [*rewrite.index_definitions(), *rewrite.per_token.values()]
    everything = {d.name: d for d in (*added, *found.definitions, *unpacked)}
    result = replace(
        program,
        definitions=_ordered(everything),
        measured={**program.measured, rewrite.tokens.size: rewrite.tokens.measured},
    )
    outputs = {name: packed[name] for name in program.outputs if name in packed}
    return result, Skipped(found.masks, hiding_value(program, rewrite.seen), len(packed), outputs)


def why_padded(program: Program, whole: Collection[str] = ()) -> str | None:
    """Why padding was not left out where masks of the inputs might tell of it; None if none might.

    Args:
        program: as `skip_padding` took it.
        whole: the same.
    """
    attentions = _attentions(program).values()
    if not attentions:
        return None
    sequences = Sequences.of(program)
    many = sum(bool(_own_sequence(sequences, a)) and hides_by_query(program, a) for a in attentions)
    if many:
        return (
            f"{many} attention{'s add' if many > 1 else ' adds'} a mask that depends on the query: one that "
            "sees no key weighs hidden keys like others, and which do is not known; "
            "a boolean mask of the keys would tell"
        )
    found = _attempt(program, whole)
    if found is None or found.is_worth_it:
        return None
    for name, reader in found.needed.items():
        by = program.definitions[reader]
        if name != reader and by.dtype.is_float:  # not what has no packed form itself, but what reads it
            return (
                f"{by.origin or reader} reads {name} at positions that {' and '.join(found.masks)} may hide, "
                "and with that nearly all that attention is computed from"
            )
    return None


@dataclass(frozen=True)
class _Attempt:
    """How far padding can be left out of a program.

    Attributes:
        rewrite: with all that can be packed.
        definitions: what it makes of the program's.
        needed: tensors that are needed everywhere, each with what reads it so; what these two are computed
            from is needed too.
    """

    rewrite: Rewrite
    definitions: Sequence[Definition]
    needed: Mapping[str, str]

    @property
    def is_worth_it(self) -> bool:
        """Whether an attention and a product are among what is packed."""
        bodies = [self.rewrite.program.definitions[name].body for name in self.rewrite.packed]
        return all(any(isinstance(b, kind) for b in bodies) for kind in (Attention, Gemm))

    @property
    def masks(self) -> tuple[str, ...]:
        """The inputs that tell which positions are needed."""
        program, read = self.rewrite.program, self.rewrite.seen.condition
        return tuple(name for name in program.inputs if name in sources(program, [read]))


def _attempt(program: Program, whole: Collection[str]) -> _Attempt | None:
    """Packs all that can be packed for the most frequent mask; None where there is no mask."""
    if not _attentions(program):
        return None
    sequences = Sequences.of(program)
    group = _largest_group(program, sequences)
    if group is None:
        return None
    batch, length = group.seen.batch.extent, group.seen.key.extent
    assert batch is not None and length is not None
    tokens = Tokens(batch, length, unused_name(program, "tokens"), unused_name(program, "positions/rank"))
    packed = _candidates(program, sequences, group, tokens)
    packed = {name: axes for name, axes in packed.items() if name not in whole}
    needed: Mapping[str, str] | None = None
    while True:
        rewrite = Rewrite(program, tokens, group.seen, frozenset(group.attentions), packed)
        definitions = []
        # From the end: what a tensor is computed from is needed where it is, and a chain is told at once,
        # but in the first round, which finds what begins them.
        for d in reversed(program.definitions.values()):
            before = len(rewrite.blocked)
            definitions.append(rewrite.definition(d))
            for name in list(rewrite.blocked)[before:] if needed is not None else ():
                packed.pop(name, None)
        if needed is None:
            needed = dict(reversed(rewrite.blocked.items()))
            packed = {name: axes for name, axes in packed.items() if name not in needed}
        if not rewrite.blocked:
            return _Attempt(rewrite, definitions[::-1], needed)


@dataclass
class _Group:
    """Self-attentions that share a mask.

    Attributes:
        seen: the mask.
        attentions: their names.
        places: what tells whose positions they are about (`padding_sequence`).
    """

    seen: SeenKeys
    attentions: list[str] = field(default_factory=list)
    places: set[Place] = field(default_factory=set)


def _largest_group(program: Program, sequences: Sequences) -> _Group | None:
    """The self-attentions that share the most frequent mask."""
    groups: dict[tuple[Expr, Expr], _Group] = {}
    for name, a in _attentions(program).items():
        own, seen = _own_sequence(sequences, a), seen_keys(program, a)
        if own and seen is not None:
            entry, position = Var(INDEX, "entry", a.batch.extent), Var(INDEX, "position", a.key.extent)
            same = seen.at(entry, position)
            group = groups.setdefault((same.condition, same.plain), _Group(same))
            group.attentions.append(name)
            group.places |= own
    return max(groups.values(), key=lambda g: len(g.attentions), default=None)


def _attentions(program: Program) -> dict[str, Attention]:
    return {d.name: d.body for d in program.definitions.values() if isinstance(d.body, Attention)}


def _own_sequence(sequences: Sequences, a: Attention) -> frozenset[Place]:
    """What an attention of padded sequences to themselves is about; nothing for other attentions.

    A mask of keys tells nothing of queries that are of another sequence, even one of the same length.
    """
    if a.row.extent != a.key.extent or a.start is not None:
        return frozenset()
    keys = sequences.places((a.k,), a.key)
    return keys if keys == sequences.places((a.q,), a.row) else frozenset()


def _candidates(program: Program, sequences: Sequences, group: _Group, tokens: Tokens) -> dict[str, Axes]:
    """Tensors by entry and position that the attentions depend on, or that depend on them.

    Outputs are 0 at hidden positions and must be of the same sequence therefore: of what the attentions are
    about, or of some of that, or of more.
    """
    related = set(group.attentions)
    for d in program.definitions.values():
        if d.reads() & related:
            related.add(d.name)
    related |= sources(program, [program.definitions[n].expr for n in group.attentions])
    related -= sources(program, [group.seen.condition])
    found: dict[str, Axes] = {}
    for d in program.definitions.values():
        axes = _axes(d, tokens)
        if d.name in related and axes is not None:
            own = sequences.known.get((d.name, axes[1]), frozenset())
            if d.name not in program.outputs or (own and (own <= group.places or own >= group.places)):
                found[d.name] = axes
    return found


def _axes(d: Definition, tokens: Tokens) -> Axes | None:
    shape = d.shape
    entry = next((i for i, n in enumerate(shape) if n == tokens.batch), None)
    position = next((i for i, n in enumerate(shape) if n == tokens.length and i != entry), None)
    return None if entry is None or position is None else (entry, position)


def _ordered(definitions: Mapping[str, Definition]) -> dict[str, Definition]:
    """Definitions in an order in which each reads only earlier ones, near to that given."""
    done: dict[str, Definition] = {}

    def place(name: str) -> None:
        stack = [name]
        while stack:
            d = definitions[stack[-1]]
            before = [n for n in sorted(_needs(d, definitions)) if n not in done]
            if before:
                stack.extend(before)
            else:
                done.setdefault(stack.pop(), d)

    for name in definitions:
        place(name)
    return done


def _needs(d: Definition, definitions: Mapping[str, Definition]) -> set[str]:
    return d.reads() & definitions.keys()
