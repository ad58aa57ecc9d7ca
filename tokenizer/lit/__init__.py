"""LIT: drop unchanged latents of a frozen codec, and restore them with a small transformer."""
