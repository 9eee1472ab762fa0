"""The rule that multipliers compose by, settled on the published tables.

    composed(multipliers, families=("sparse", "scalar")).multiplier.value

`DEFAULT` is the rule with the least error in tables that its constants were not learned from; a test holds
it to that. Cells with 2 bits in Fig. 9 and with 8 bits in Fig. 7 are worth more than one of their parts,
which no rule of this kind can say (`Evidence.least_error`). QuEST's multipliers of weights and inputs
together, from which nothing is learned, follow the product more closely than any other rule
(`quest_evidence`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from ..runtime.laws.compose import Composition, compose
from ..runtime.laws.composition import PRODUCT, Evidence, Settled, find_rule, settle
from ..runtime.laws.composition.trial import with_residuals
from ..runtime.laws.multiplier import Multiplier
from ..runtime.laws.published import PublishedFit, Table
from .published_fits import published_fits

DEFAULT = "overlap by family"
TABLES = {
    "Fig. 6": "panferov-fig6",
    "Fig. 7": "panferov-fig7",
    "Fig. 9": "panferov-fig9",
    "Fig. 2b": "panferov-fig2b",
}


def composed(
    multipliers: Sequence[Multiplier], name: str = "", families: Sequence[str] = (), rule: str = DEFAULT
) -> Composition:
    """The composite of multipliers of one fit by a rule, by default the best one on tables left out.

    families: "sparse" or "scalar" for each multiplier.
    Raises RequestError for an unknown rule, for multipliers of different fits, and without families for a
    rule that asks for them.
    """
    return compose(multipliers, name, settled_rule(rule), families)


@lru_cache(maxsize=32)
def settled_rule(name: str) -> Settled:
    """A rule with constants from the published tables, and with its errors in each table left out.

    Raises RequestError for an unknown name.
    """
    rule = find_rule(name)
    if rule == PRODUCT.rule:
        return PRODUCT
    source = f"constants: least squares on arXiv 2506.01863 v1, {', '.join(TABLES)}; residuals: each left out"
    return with_residuals(settle(rule, evidence(), source), evidence())


@lru_cache(maxsize=1)
def evidence() -> tuple[Evidence, ...]:
    """The four published tables of composites."""
    return tuple(Evidence.of_table(label, table_of(published_fits()[name])) for label, name in TABLES.items())


def quest_evidence() -> Evidence:
    """A table that no constant is learned from: INT weights and inputs of 1 to 4 bits in QuEST's stored fit.

    Inputs alone were not trained; they are taken to be worth what weights alone are, as they nearly are in
    Fig. 6.
    """
    entries = published_fits()["quest"].entries
    alone = np.array([entries[f"W{bits}A16"].value for bits in range(1, 5)])
    both = np.array([entries[f"W{bits}A{bits}"].value for bits in range(1, 5)])
    return Evidence(
        "QuEST", ("scalar", "scalar"), np.stack([alone, alone]), both, np.stack([np.arange(4), np.arange(4)])
    )


def table_of(fit: PublishedFit) -> Table:
    """The table of a published fit. Raises ValueError when it has none."""
    if fit.table is None:
        raise ValueError(f"{fit.name} has no table")
    return fit.table
