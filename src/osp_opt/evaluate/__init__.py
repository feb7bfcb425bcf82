"""`osp-opt evaluate`: what a faster video lost, pair by pair, and how surely that is known."""
