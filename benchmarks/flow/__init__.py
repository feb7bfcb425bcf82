"""The benchmark on the second model: flow matching, two guidance calls, diffusers' own classes."""
