"""LIT: drop what does not change in the latents of a frozen codec, and let a small transformer restore it."""
