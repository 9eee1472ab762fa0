"""The shortest path through a bitshift trellis (Viterbi), for many rows at once.

States have `state_bits` bits L; a step shifts `num_bits` new bits k in at the bottom and as many out at the
top (QTIP, 2406.11235, section 3). What a step costs depends on the new state alone, so the 2^k states that
differ in their top bits compete for the next 2^k, and the work per number is a minimum over 2^L costs and a
sum of 2^L terms. Costs stay in the order of an address from which the state is read by rotation: the new
bits take the place of those that the minimum has just removed, so that nothing moves in memory. Only when
the places left are too narrow for fast loops, every few steps, the minima are put back in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..determinism import one_thread

_NARROWEST = 5  # bits of the innermost loops: 32 neighbours
_CACHE = 1 << 20  # bytes of costs that one set of rows may have, to stay near the core
_MEMORY = 1 << 29  # bytes of minima that are kept for tracing back


@dataclass(frozen=True, eq=False)
class Bitshift:
    """The bitshift trellis of one code: `values[s]` is the number that state s stands for, `[2^L]`."""

    values: Tensor
    num_bits: int

    @cached_property
    def state_bits(self) -> int:
        return len(self.values).bit_length() - 1

    @cached_property
    def heads(self) -> int:
        """How many heads there are, 2^(L - k). A head is what a state hands on: all but its oldest bits."""
        return len(self.values) >> self.num_bits

    @cached_property
    def values_by_head(self) -> Tensor:
        """Values of the states that have a head in common, `[2^(L - k), 2^k]`."""
        return self.values.view(-1, self.heads).T.contiguous()

    @cached_property
    def cycle(self) -> int:
        """Steps from one reordering to the next."""
        room = self.state_bits - max(_NARROWEST, self.num_bits)
        return max(1, room // self.num_bits - 1)

    def next_turn(self, step: int) -> int:
        """How often an address was rotated after this step: 1 to `cycle`."""
        return 1 + step % self.cycle

    @cached_property
    def values_by_turn(self) -> list[tuple[Tensor, Tensor]]:
        """Values and their squares in the order of addresses, for turn 1, 2 and so on."""
        address = torch.arange(len(self.values), device=self.values.device)
        turned = []
        for turn in range(1, self.cycle + 1):
            shift = self.num_bits * turn
            state = (address << shift | address >> (self.state_bits - shift)) & (len(self.values) - 1)
            turned.append((self.values[state], self.values[state].square()))
        return turned

    @cached_property
    def places_by_turn(self) -> list[Tensor]:
        """Where the minimum of each head lies among the minima of turn 1, 2 and so on."""
        head = torch.arange(self.heads, device=self.values.device)
        shifts = [self.num_bits * turn for turn in range(1, self.cycle + 1)]
        return [(head & ((1 << shift) - 1)) * (self.heads >> shift) + (head >> shift) for shift in shifts]


def shortest_path(
    trellis: Bitshift,
    x: Tensor,
    weight: Tensor | None = None,
    first: Tensor | None = None,
    last: Tensor | None = None,
) -> Tensor:
    """States `[rows, n]` (int32) whose values have the least squared distance from each row of `x`.

    `x` is `[rows, n]` in the dtype of the trellis, n at least 1. `weight`, like `x`, is what the squared
    distance at each number counts. `first` and `last`, int64 `[rows]`, are the heads that paths begin after
    and end in (there must be such paths: n * k of at least L allows all); without them the ends are free.
    """
    width = len(trellis.values) * x.element_size()
    size = max(1, min(_CACHE // width, _MEMORY // (width * max(x.shape[1], 1) >> trellis.num_bits)))
    steps = min(x.shape[1], max(trellis.cycle, _MEMORY // (width * size >> trellis.num_bits)))
    memory = x.new_empty(steps * min(size, len(x)) * trellis.heads)  # one for all, since new pages cost time
    states = torch.empty(x.shape, dtype=torch.int32, device=x.device)
    with one_thread():
        for start in range(0, len(x), size):
            part = slice(start, start + size)
            search = _Search(trellis, x[part], _part(weight, part), memory)
            states[part] = search.path(_part(first, part), _part(last, part))
    return states


def _part(tensor: Tensor | None, rows: slice) -> Tensor | None:
    return None if tensor is None else tensor[rows]


class _Search:
    """One set of rows on its way through the trellis, in blocks of steps whose minima are kept.

    A row too long for one block is walked twice: first to learn what every block starts from, then, from the
    last block to the first, for the minima that tracing back needs.
    """

    def __init__(self, trellis: Bitshift, x: Tensor, weight: Tensor | None, memory: Tensor) -> None:
        self.trellis = trellis
        self.doubled = (-2 * x).T.contiguous()  # [n, rows]
        self.weight = None if weight is None else weight.T.contiguous()
        steps, rows = self.doubled.shape
        fit = len(memory) // (rows * trellis.heads)
        self.block = steps if steps <= fit else fit // trellis.cycle * trellis.cycle  # ends with a cycle
        used = min(self.block, steps) * rows * trellis.heads
        self.minima = memory[:used].view(-1, rows, trellis.heads)
        self.costs = x.new_empty(rows, len(trellis.values))
        self.ordered = x.new_empty(rows, trellis.heads)
        self.halves = [
            x.new_empty(rows * len(trellis.values) >> (level + 1)) for level in range(trellis.num_bits - 1)
        ]

    def path(self, first: Tensor | None, last: Tensor | None) -> Tensor:
        steps, rows = self.doubled.shape
        starts = [self._start(first)]
        blocks = [range(first, min(first + self.block, steps)) for first in range(0, steps, self.block)]
        for block in blocks[:-1]:
            starts.append(self._forward(block, starts[-1]).clone())
        states = torch.empty(steps, rows, dtype=torch.int32, device=self.doubled.device)
        for start, block in zip(reversed(starts), reversed(blocks), strict=True):
            self._forward(block, start)
            last = self._best_end(block[-1]) if last is None else last
            last = self._backward(block, start, last, states)
        return states.T

    def _start(self, head: Tensor | None) -> Tensor:
        """The cost of every head before the first step."""
        if head is None:
            return torch.zeros_like(self.ordered)
        return torch.full_like(self.ordered, torch.inf).scatter_(1, head.unsqueeze(1), 0.0)

    def _forward(self, block: range, best: Tensor) -> Tensor:
        """Walk the steps of a block from the minima `best` per head; returns those after its last step.

        What is returned is in order of heads only where the block ends a cycle, as all but the last do.
        """
        trellis, rows, branches = self.trellis, self.costs.shape[0], 1 << self.trellis.num_bits
        for step in block:
            turn = trellis.next_turn(step)
            outer = 1 << (trellis.num_bits * (turn - 1))
            inner = trellis.heads // outer
            self._add_step(step, turn, best.view(rows, outer, 1, inner))
            best = self._least(self.minima[step - block.start], outer * branches, inner // branches)
            if turn == trellis.cycle:
                moved = best.view(rows, outer * branches, inner // branches).transpose(1, 2)
                self.ordered.view(moved.shape).copy_(moved)
                best = self.ordered.sub_(best.amin(1, keepdim=True))
        return best

    def _add_step(self, step: int, turn: int, best: Tensor) -> None:
        """Costs of every state after a step: the least way to it, and w (c^2 - 2 x c)."""
        values, squares = self.trellis.values_by_turn[turn - 1]
        torch.addcmul(squares, values, self.doubled[step].unsqueeze(1), out=self.costs)
        if self.weight is not None:
            self.costs.mul_(self.weight[step].unsqueeze(1))
        rows, outer, _, inner = best.shape
        self.costs.view(rows, outer, 1 << self.trellis.num_bits, inner).add_(best)

    def _least(self, out: Tensor, outer: int, inner: int) -> Tensor:
        """Minimum over the oldest bits, by halves, into `out`."""
        width = 1 << self.trellis.num_bits
        costs = self.costs.view(-1, outer, width, inner)
        for half in [*self.halves, out]:
            width //= 2
            into = half.view(-1, outer, width, inner)
            costs = torch.minimum(costs[:, :, :width], costs[:, :, width:], out=into)
        return out

    def _best_end(self, step: int) -> Tensor:
        """The head that the cheapest path ends in."""
        minima = self.minima[step % self.block]
        places = self.trellis.places_by_turn[self.trellis.next_turn(step) - 1]
        return minima[:, places].argmin(1)

    def _backward(self, block: range, start: Tensor, head: Tensor, states: Tensor) -> Tensor:
        """Trace a block back from the head after it, write its states, return the head before it.

        A head leaves 2^k states to choose from; their costs are made afresh from the minima before them.
        """
        trellis, shift = self.trellis, self.trellis.state_bits - self.trellis.num_bits
        values = trellis.values_by_head
        oldest = torch.arange(values.shape[1], device=head.device) << shift
        for step in reversed(block):
            heads = (head.unsqueeze(1) | oldest) >> trellis.num_bits
            if step > block.start:
                places = trellis.places_by_turn[trellis.next_turn(step - 1) - 1]
                before = self.minima[step - 1 - block.start].gather(1, places[heads])
            else:
                before = start.gather(1, heads)
            value = values[head]
            added = value * (value + self.doubled[step].unsqueeze(1))
            if self.weight is not None:
                added *= self.weight[step].unsqueeze(1)
            state = head | (before + added).argmin(1) << shift
            states[step] = state
            head = state >> trellis.num_bits
        return head
