"""R-CNN and SPPnet with our network, proposals and evaluation, to measure Fast R-CNN beside them.

What they do is theirs (Girshick et al., CVPR 2014; He et al., ECCV 2014; their released code where
the papers are silent); how fast is up to us: batched crops, all cores, nothing computed twice.
"""
