"""The page of `genvid studio`: a video at any token budget, and samples, in a browser on the same machine.

`video` and `session` code and sample, without a page; `page` shows their results with gradio, the optional extra
`studio`.
"""
