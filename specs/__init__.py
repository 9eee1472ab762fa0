"""Shipped formats, sweeps and published multipliers."""
