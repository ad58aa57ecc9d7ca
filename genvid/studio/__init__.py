"""The page of `genvid studio`: a video at any token budget, and samples, in a browser on the same machine.

`video` and `requests` do the work and need no page; `page` shows them with gradio, the optional extra `studio`.
"""
