"""Rules that compose multipliers: declared, settled on published tables, and held to tables left out."""

from .evidence import Evidence
from .rules import RULES, Rule, find_rule
from .settled import PRODUCT, Residual, Settled
from .trial import Trial, choose, leave_one_line_out, leave_one_table_out, settle, standings

__all__ = [
    "PRODUCT",
    "RULES",
    "Evidence",
    "Residual",
    "Rule",
    "Settled",
    "Trial",
    "choose",
    "find_rule",
    "leave_one_line_out",
    "leave_one_table_out",
    "settle",
    "standings",
]
