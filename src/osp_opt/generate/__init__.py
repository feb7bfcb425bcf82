"""Making videos: the loaded model, prompts, what a video was made with."""
