"""Decayed linear attention: the same two entry points, `chunk` and `step`, in every backend.

    B batch    T tokens    Hq query heads    H key/value heads    K features    V value dim

    S_t = exp(log_decay_t) S_{t-1} + k_t v_tᵀ        o_t = q_t S_t

There is no denominator here: a model that wants one appends a column of ones to v. Query heads of
a group share the state of their key/value head.

    reference.py    float64, token by token; the truth that the others are tested against
    torch_ops.py    portable, differentiable
    training.py     whole sequences at once, with gradients worked out by hand
    windowed.py     the last tokens by softmax attention, only those before them by this
    near.py         that softmax attention
    cpu/            the step compiled for the CPU
    triton/         the kernels for CUDA devices
    dispatch.py     which backend serves a device
    linear.py       matrix products whose bits do not depend on the batch
    activations.py  activations of the same kind
"""
