"""Other people's text-to-video pipelines, driven from outside: nothing of them is rebuilt."""

from osp_opt.pipelines.diffusers_pipeline import DiffusersPipeline, Made, StepSeen, open_pipeline

__all__ = ["DiffusersPipeline", "Made", "StepSeen", "open_pipeline"]
