"""Block caching: what to reuse and when (`policy`), and the object that does it (`block_cache`)."""
