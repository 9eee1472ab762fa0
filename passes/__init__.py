"""What rewrites one torch.fx graph: passes, the facts they establish, and the pipeline that orders them."""
