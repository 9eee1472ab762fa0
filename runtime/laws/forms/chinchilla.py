"""Chinchilla: loss from size and data alone, every run treated as dense."""

from __future__ import annotations

from ..base import Law, Parameter

E = Parameter("E", meaning="loss that neither size nor data removes", unit="nats per token")
A = Parameter("A", meaning="weight of the size term", unit="nats per token times N^alpha")
ALPHA = Parameter("alpha", 0.01, 2.0, "exponent of the size term")
B = Parameter("B", meaning="weight of the data term", unit="nats per token times D^beta")
BETA = Parameter("beta", 0.01, 2.0, "exponent of the data term")

CHINCHILLA = Law(
    name="chinchilla",
    formula="L = E + A/N^alpha + B/D^beta",
    source="Hoffmann et al., Training Compute-Optimal Large Language Models, arXiv 2203.15556, eq. 10",
    parameters=(E, A, ALPHA, B, BETA),
)
