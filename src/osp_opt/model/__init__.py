"""Open-Sora-Plan v1.2's networks: transformer, video autoencoder, text encoder, and their files."""
