"""`osp-opt report`: one self-contained HTML file, made from the artifacts of finished runs."""
