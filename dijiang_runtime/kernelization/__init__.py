"""The paper: frequency-domain kernelization of softmax attention (DiJiang, ICML 2024).

dct.py           the DCT-II matrix C, whose columns stand for directions on the sphere
points.py        points of (0, 1), pseudo-random or low-discrepancy, and their quantiles
projection.py    P = C diag(t): what a feature map multiplies its input by
quasi_monte_carlo.py   frequencies and weights of the rules that the paper compares
error.py         how far each rule's attention is from softmax attention
feature_map.py   the feature map, in the authors' published form and in the paper's
"""
