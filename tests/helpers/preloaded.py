"""What the server of forks does before it forks: all that a command imports and checks first."""

import gc

from osp_opt.system.host import importing

with importing():
    import diffusers.models.attention_dispatch  # noqa: F401
    import torch.distributed  # noqa: F401

    import osp_opt.calibration.job
    import osp_opt.evaluate.job
    import osp_opt.generate.job
    import osp_opt.pipelines.open_sora_plan
    import osp_opt.run.worker
    import osp_opt.search.cache.job
    import osp_opt.search.recipe.job
    import osp_opt.search.steps.job  # noqa: F401
    from osp_opt.base.ffmpeg import check_ffmpeg

check_ffmpeg()
gc.freeze()  # no process looks through it for garbage
