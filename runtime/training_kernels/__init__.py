"""Fused kernels of training: a projection and its mask in one pass over memory, and its backward pass.

A kernel module has `refusal(plan, shape, dtype, device)`, `project(x, plan, keep_rotated, want_mask)` and
`backward(grad, mask, plan, keep_rotated)`; `select` chooses one.
"""
