"""Vector codebooks: tables fitted to data, tables optimal for Gaussian data, lattices, and searches."""
