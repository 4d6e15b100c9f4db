"""Deterministic simulation of the engine: a seed is a run, and every run is checked at every step.

The real scheduler, engine and text processing run over a simulated model whose state is a hash of
the whole history, so that any mix-up of states changes the output. Time is counted, not measured.

    model.py       the simulated model and its vocabulary
    isolated.py    what each request must be answered: written from the contract, not from the code
    world.py       arrivals, aborts, faults, and the invariants I1 to I12
    mutations.py   known bugs, planted one at a time, that the simulation must catch
    seeds.py       for each known bug, a small world that shows it
    __main__.py    long campaigns: `make simulate`
"""
