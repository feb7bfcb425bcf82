"""What osp-opt finds, in the words of other people's runtimes; one module per family of them."""
