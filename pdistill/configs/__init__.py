"""One file an experiment; `scale` has what they share.

`digits_methods` is made of functions of `digits_gan`, `digits_dmd` and `digits_ctm`.
"""
