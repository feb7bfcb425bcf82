"""What a faster video lost and what it gained: fidelity, intervals, time and memory."""
