"""Checkpoints that other programs load, and theirs read: compressed-tensors, sparse-quantised, plain dense.

A layout is one file: how a matrix of codes and its scales lie in tensors, written and read. A weight that a
layout cannot say bit for bit is refused by name; nothing is ever rounded on the way.
"""
