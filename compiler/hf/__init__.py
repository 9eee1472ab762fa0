"""Packed models in transformers: `save_pretrained` and `from_pretrained` after one `import rhoc`."""
