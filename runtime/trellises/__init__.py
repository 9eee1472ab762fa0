"""Trellis-coded quantisation in parts: the codes, the shortest path, and the tables that ship."""
