"""The paper: frequency-domain kernelization of softmax attention (DiJiang, ICML 2024).

dct.py           the DCT-II matrix C, whose columns stand for directions on the sphere
points.py        points of (0, 1), pseudo-random or low-discrepancy, and their quantiles
projection.py    P = C diag(t): what a feature map multiplies its input by
feature_map.py   the feature map, in the authors' published form and in the paper's
"""
