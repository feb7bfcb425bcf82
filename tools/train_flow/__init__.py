"""Training the second model: flow matching, of diffusers' own classes throughout."""
