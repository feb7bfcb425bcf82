"""The machine: devices, ranks, time and memory."""
