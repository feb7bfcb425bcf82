"""What the commands do, one module each: `run(options, context)` in every worker process."""
