"""The processes of a job: launcher, worker, run folder, failures."""
