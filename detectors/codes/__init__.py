"""Encodings of a layer's activation: packed bits, SOM units, latent vectors. They import no detector."""
