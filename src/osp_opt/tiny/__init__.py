"""The bundled model's world: procedural clips, their captions, and a checker that reads them back.

Import the submodules directly (``osp_opt.tiny.clips``, ``.captions``, ``.checker``, ``.prompts``,
``.text``); importing this package alone does nothing, so that ``--help`` stays free of torch.
"""
