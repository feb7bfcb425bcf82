"""What makes videos: Open-Sora-Plan's models, and other people's pipelines driven from outside."""
